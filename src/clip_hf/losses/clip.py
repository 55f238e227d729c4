"""The loss of CLIP training: the contrastive loss over the pairs of all ranks.

Shapes: B pairs per rank, N = B x world size pairs in all, D the width of the joint embedding space.
"""

from functools import partial

import torch
from torch import Tensor

from clip_hf.distributed import all_gather, all_to_all, rank, world_size
from clip_hf.losses.tiled import reduce_logits_in_tiles
from clip_hf.model.contrastive_loss_clip_hf import contrastive_loss, reduce_logits


def clip_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    scale: Tensor,
    tile_size: int | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """The contrastive loss of this rank's pairs among the pairs of all ranks, which must all call it.

    Its mean over the ranks is the loss of the global batch, and the mean of the ranks' gradients, which is what
    DistributedDataParallel, ZeRO and FSDP compute, is the gradient of that loss for both towers and the scale.

    Args:
        image_embeds: (B, D), unit length; this rank's images. B and D are the same on every rank.
        text_embeds: (B, D), unit length; row i describes image i.
        scale: () or (1,), linear: `logit_scale.exp()`, not `logit_scale`.
        tile_size: side of the tiles that the B x N logits are computed in, so that memory grows with N and not with
            B x N, for a third more matrix products. A size of N or more holds the logits as a whole. By default, tiles
            have 1024 rows and columns on a CPU, 4096 elsewhere, and logits that fill no more than one are held whole.
        groups: (B,), int64; pairs of one group, on whichever ranks, are not each other's negatives. By default all
            pairs are.

    Returns:
        (), in nats, the mean over this rank's pairs and both directions.

    Raises:
        ValueError: on every rank, if the ranks differ in B, D or `tile_size`, or not all have groups; `tile_size` is
            not positive; the shapes are not those above.
    """
    if tile_size is not None and not (isinstance(tile_size, int) and tile_size >= 1):
        raise ValueError(f"tile_size must be None or a whole number of at least 1, got {tile_size!r}")
    if groups is not None and groups.shape != image_embeds.shape[:1]:
        raise ValueError(f"groups must hold a number for each of {len(image_embeds)} pairs, got {tuple(groups.shape)}")
    _require_equal_ranks(image_embeds, text_embeds, tile_size, groups)
    reduction = partial(_reduce_global_logits, tile_size=tile_size, groups=groups)
    return contrastive_loss(image_embeds, text_embeds, scale, reduction)


def _require_equal_ranks(
    image_embeds: Tensor, text_embeds: Tensor, tile_size: int | None, groups: Tensor | None
) -> None:
    # Ranks that enter a collective with different sizes hang or corrupt memory: the sizes travel first, so that every
    # rank sees the difference and raises.
    if world_size() == 1:
        return
    has_groups = int(groups is not None)
    sizes = [len(image_embeds), len(text_embeds), image_embeds.shape[-1], tile_size or 0, has_groups]
    table = all_gather(torch.tensor([sizes], device=image_embeds.device)).tolist()
    for other, row in enumerate(table):
        if row != table[0]:
            raise ValueError(
                "all ranks must bring equally many pairs of one width, one tile_size, and all of them groups or none: "
                f"rank 0 has (images, texts, width, tile_size, has groups) = {tuple(table[0])}, rank {other} has "
                f"{tuple(row)}. Drop the last, smaller batch (dataloader_drop_last=True) or deal the data out evenly"
            )


def _reduce_global_logits(
    image_embeds: Tensor, text_embeds: Tensor, scale: Tensor, tile_size: int | None, groups: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers of `reduce_logits` for this rank's pairs, among the pairs of all ranks.

    A rank computes the logits of its images with all texts, once for both directions: together the ranks do exactly
    the work of one process. What a text is still owed by the images of other ranks arrives as one number from each.
    """
    all_texts = all_gather(text_embeds)
    first_match = rank() * len(text_embeds)
    if tile_size is None:
        tile_size = _default_tile_size(len(image_embeds), len(all_texts), image_embeds.device)
    all_groups = None if groups is None else (groups, all_gather(groups))
    if tile_size >= len(all_texts):
        reduced = reduce_logits(image_embeds, all_texts, scale, first_match, all_groups)
    else:
        reduced = reduce_logits_in_tiles(image_embeds, all_texts, scale, first_match, tile_size, all_groups)
    matching, image_log_sums, text_log_sums = reduced
    return matching, image_log_sums, all_to_all(text_log_sums).unflatten(0, (world_size(), -1)).logsumexp(0)


def _default_tile_size(num_images: int, num_texts: int, device: torch.device) -> int:
    # A float32 tile of 1024 x 1024 stays in a processor's cache; an accelerator wants fewer, larger kernels.
    tile_size = 1024 if device.type == "cpu" else 4096
    return num_texts if num_images * num_texts <= tile_size**2 else tile_size
