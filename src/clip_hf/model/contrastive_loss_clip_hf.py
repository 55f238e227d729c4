"""The contrastive loss of CLIP: every image picks its text, and every text its image, among all pairs of the batch.

Shapes: B pairs, N >= B candidate texts, D the width of the joint embedding space.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

EXCLUDED = -1e30
"""A logit that adds nothing to a sum; with an infinite one, the gradient of a sum of nothing else is not a number."""


@contextmanager
def whole_float32(device_type: str) -> Iterator[None]:
    """Multiplies float32 matrices as such inside: not in bfloat16 under autocast, nor in TF32 where that is allowed.

    Args:
        device_type: of the matrices.
    """
    libraries: Any = torch.backends
    parents = {libraries.cuda.matmul: libraries.cudnn, libraries.mkldnn.matmul: libraries.mkldnn}
    before = {}
    for backend, parent in parents.items():
        precision = backend.fp32_precision
        # What is the parent's is taken for inherited, and is to follow it again: "none" says so.
        before[backend] = "none" if precision == parent.fp32_precision else precision
    try:
        for backend in before:
            backend.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, precision in before.items():
            backend.fp32_precision = precision


class _Logits(torch.autograd.Function):
    """Products of all images (B, D) with all texts (N, D) in whole float32, whatever surrounds the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(images: Tensor, texts: Tensor) -> Tensor:
        with whole_float32(images.device.type):
            return images @ texts.T

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        images, texts = ctx.saved_tensors
        needs_images, needs_texts = ctx.needs_input_grad
        with whole_float32(gradient.device.type):
            return gradient @ texts if needs_images else None, gradient.T @ images if needs_texts else None


def reduce_logits(
    image_embeds: Tensor,
    text_embeds: Tensor,
    scale: Tensor,
    first_match: int = 0,
    groups: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the loss needs to know of the B x N matrix of logits, which is held in memory as a whole.

    Args:
        image_embeds: (B, D).
        text_embeds: (N, D); text `first_match + i` describes image i.
        scale: (), linear.
        first_match: row of `text_embeds` that describes the first image.
        groups: (B,) of the images and (N,) of the texts; an image and a text of one group that do not belong together
            are left out of both sums.

    Returns:
        (B,) the logit of each matching pair, (B,) log-sum-exp over the texts of each image, and (N,) log-sum-exp over
        the images of each text.
    """
    scaled = scale * image_embeds
    # A compiler does not know such switches, and has one of its own for all that it compiles.
    logits = scaled @ text_embeds.T if torch.compiler.is_compiling() else _Logits.apply(scaled, text_embeds)
    matching = logits.diagonal(first_match)
    if groups is not None:
        logits = logits.masked_fill(are_twins(*groups, first_match), EXCLUDED)
    return matching, logits.logsumexp(1), logits.logsumexp(0)


def are_twins(image_groups: Tensor, text_groups: Tensor, first_match: int) -> Tensor:
    """Returns (B, N): whether an image and a text are of one group, though text `first_match + i` is that of image i.

    Args:
        image_groups: (B,).
        text_groups: (N,).
        first_match: may be negative, or beyond the texts.
    """
    twins = image_groups[:, None] == text_groups
    twins.diagonal(first_match).fill_(False)
    return twins


def contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    scale: Tensor,
    reduction: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] = reduce_logits,
) -> Tensor:
    """Symmetric cross-entropy over all image-text similarities (CLIP, arXiv 2103.00020, section 2.3 and Fig. 3).

    The cross-entropy of a softmax is the log-sum-exp over all candidates minus the logit of the right one; the mean is
    taken over the pairs and over both directions. It is computed in float32 (float64 for float64 embeddings) whatever
    the dtype of the embeddings, also under autocast: at the final scale of 100, bfloat16 logits are wrong by 0.1.

    Args:
        image_embeds: (B, D), unit length.
        text_embeds: (B, D), unit length; row i describes image i.
        scale: () or (1,), linear: `logit_scale.exp()`, not `logit_scale`.
        reduction: how the logits are reduced to the numbers of `reduce_logits`, without a `first_match`; other ways
            may see the texts of other processes or never hold the matrix.

    Returns:
        (), in nats: log(B) for embeddings that cannot tell the pairs apart, 0 for a perfect model.

    Raises:
        ValueError: the embeddings do not share one shape (B, D) with B >= 1, or the scale is not a single number.
    """
    if image_embeds.ndim != 2 or image_embeds.shape != text_embeds.shape or len(image_embeds) == 0:
        raise ValueError(
            f"image_embeds {tuple(image_embeds.shape)} and text_embeds {tuple(text_embeds.shape)} must have the same "
            "shape (pairs, width) with at least one pair: text i describes image i"
        )
    if not isinstance(scale, Tensor) or scale.numel() != 1:
        found = f"has shape {tuple(scale.shape)}" if isinstance(scale, Tensor) else f"is {scale!r}"
        raise ValueError(f"scale must be a tensor of 1 number, of shape () or (1,), but {found}")
    dtype = torch.promote_types(torch.promote_types(image_embeds.dtype, text_embeds.dtype), torch.float32)
    with torch.autocast(image_embeds.device.type, enabled=False):
        matching, image_log_sums, text_log_sums = reduction(
            image_embeds.to(dtype), text_embeds.to(dtype), scale.to(dtype).reshape(())
        )
        return ((image_log_sums - matching) + (text_log_sums - matching)).mean() / 2
