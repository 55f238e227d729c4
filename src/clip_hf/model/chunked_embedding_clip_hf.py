"""Embeddings of a large batch in the memory of one chunk (gradient cache: Gao et al. 2021, arXiv 2101.06983).

The contrastive loss wants the embeddings of the whole batch, but never the towers' activations of more than one chunk.
Each chunk is embedded and its activations are dropped; the backward pass, which starts from the loss of the whole
batch, computes them again, chunk by chunk and with the same random numbers. All chunks belong to one graph, so every
parameter gets its gradient once and whole: DistributedDataParallel, ZeRO and FSDP reduce it as they always do.

Shapes: B rows of the batch, L tokens, E joint embedding.
"""

import ctypes
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .modeling_clip_hf_text import require_end_of_text, trim_padding

CHUNKS_PER_TRIM = 4
MAX_LENGTH_GROUPS = 4
"""Of a batch that is not chunked: more, smaller groups would have less padding and more passes of the tower."""
TEXTS_PER_LENGTH_GROUP = 64
"""On a CPU. What they share and what only attention sees, padding, would let groups be larger but for the memory."""
TEXTS_PER_LENGTH_GROUP_OF_ACCELERATORS = 2048
"""To have the kernels of another pass started takes an accelerator longer than the padding of fewer texts.

In training that is attention's alone, whose memory grows with it."""
NUM_CUTS = 32
"""Places, evenly spread, where a batch may be cut into groups: more would save little."""


def embed_in_chunks(embed: Callable[[Tensor], Tensor], inputs: Tensor, chunk_size: int | None) -> Tensor:
    """Returns `embed(inputs)`, computed on `chunk_size` rows at a time.

    Args:
        embed: gives (rows, E) for some rows of the inputs. Where rows see each other, as in batch norm, a row sees
            those of its chunk.
        inputs: (B, ...).
        chunk_size: rows, at least 1; it need not divide B. None, or B and more, is a plain call.
    """
    if chunk_size is None or chunk_size >= len(inputs):
        return embed(inputs)
    return _embed_each(embed, inputs.split(chunk_size))


@torch.compiler.disable(recursive=False)  # lengths are those of the data: a compiler would begin anew with each batch
def embed_texts_in_chunks(
    embed: Callable[[Tensor], Tensor], input_ids: Tensor, eos_token_id: int, chunk_size: int | None
) -> Tensor:
    """Returns `embed(input_ids)`, computed on texts of like length at a time, each chunk trimmed.

    In a batch of hundreds some text is always long, and padding all to its length would be most of the work. The loss
    alone needs to know which image a text belongs to, so chunks are made of texts sorted by length, and the embeddings
    are put back. That pays where memory needs no chunks, too: then there are a few groups, whose activations are kept.

    Args:
        embed: gives (rows, E) for some rows of the ids.
        input_ids: (B, L), each row with an end-of-text token.
        eos_token_id: the end-of-text id.
        chunk_size: as in `embed_in_chunks`.

    Raises:
        ValueError: a row has no end-of-text token.
    """
    is_recomputed = chunk_size is not None and chunk_size < len(input_ids)
    num_groups = num_length_groups(len(input_ids), input_ids.device.type)
    if not is_recomputed and num_groups == 1:
        return embed(trim_padding(input_ids, eos_token_id))
    is_eos = input_ids == eos_token_id
    require_end_of_text(is_eos, eos_token_id)  # here, where texts have the numbers by which the caller knows them
    ends, order = is_eos.int().argmax(dim=-1).sort()
    if input_ids.device.type == "cpu":  # where the texts of a chunk share their beginnings: then by these, too
        keys = torch.cat([ends[:, None], input_ids[order]], dim=1)
        order = order[keys.unique(dim=0, return_inverse=True)[1].argsort()]
    # Of all at once: on an accelerator, asking for a length waits for all work given.
    lengths = [end + 1 for end in ends.tolist()]
    sizes = (
        [len(part) for part in ends.split(chunk_size)] if is_recomputed else length_group_sizes(lengths, num_groups)
    )
    last_texts = [end - 1 for end in accumulate(sizes)]
    chunks = [chunk[:, : lengths[last]] for chunk, last in zip(input_ids[order].split(sizes), last_texts, strict=True)]
    embeds = _embed_each(embed, chunks) if is_recomputed else torch.cat([embed(chunk) for chunk in chunks])
    return torch.empty_like(embeds).index_copy(0, order, embeds)


def num_length_groups(num_texts: int, device_type: str) -> int:
    """Returns how many groups of like length a batch of texts is divided into.

    It does not depend on the lengths: ZeRO-3 and FSDP2 gather the weights for each group, which all processes have to
    do as often.

    Args:
        num_texts: of this process.
        device_type: where they are embedded.
    """
    on_cpu = device_type == "cpu"
    least = TEXTS_PER_LENGTH_GROUP if on_cpu else TEXTS_PER_LENGTH_GROUP_OF_ACCELERATORS
    return min(MAX_LENGTH_GROUPS, math.ceil(num_texts / least))


def length_group_sizes(lengths: Sequence[int], num_groups: int) -> list[int]:
    """Returns the sizes of the groups of texts that have the least padding.

    Args:
        lengths: of the texts in tokens, ascending; one at least.
        num_groups: of the texts, from `num_length_groups`.
    """
    num_texts = len(lengths)
    cuts = [*range(0, num_texts, math.ceil(num_texts / NUM_CUTS)), num_texts]
    # The least tokens, padding counted, of the texts before each cut in so many groups, and the sizes of these.
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for _ in range(num_groups):
        best = {
            cut: min(
                (tokens + (cut - start) * lengths[cut - 1], [*sizes, cut - start])
                for start, (tokens, sizes) in best.items()
                if start < cut
            )
            for cut in cuts
            if cut > min(best)
        }
    return best[num_texts][1]


@torch.compiler.disable(recursive=False)  # no compiler knows such checkpoints; the towers in them may be compiled
def _embed_each(embed: Callable[[Tensor], Tensor], chunks: Sequence[Tensor]) -> Tensor:
    def embed_after_trim(chunk: Tensor) -> Tensor:
        _return_freed_memory(chunk.device.type)
        return embed(chunk)

    # What is called here is called again in the backward pass.
    calls = [embed if number % CHUNKS_PER_TRIM else embed_after_trim for number in range(len(chunks))]
    run = partial(checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), _recomputation()))
    with _no_autocast_cache():
        return torch.cat([run(call, chunk) for call, chunk in zip(calls, chunks, strict=True)])


@contextmanager
def _no_autocast_cache() -> Iterator[None]:
    # It gives all chunks one rounded copy of a weight, in whose precision the gradients of hundreds of chunks would
    # be added up. Checkpoints remember that it is off.
    was_enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(was_enabled)


_is_recomputing = False


@contextmanager
def _recomputation() -> Iterator[None]:
    global _is_recomputing
    _is_recomputing = True
    try:
        yield
    finally:
        _is_recomputing = False


def is_recomputing() -> bool:
    """Whether activations are computed a second time, in the backward pass, by whichever checkpointing."""
    if torch.compiler.is_compiling():
        return _is_recomputing
    return torch._C._current_graph_task_id() != -1


@torch.compiler.disable
def _return_freed_memory(device_type: str) -> None:
    # glibc seldom uses the aligned memory that a chunk has freed for the next chunk, and keeps it (its bug 14581): a
    # hundred chunks on a CPU would take the memory of dozens.
    malloc_trim = _malloc_trim() if device_type == "cpu" else None
    if malloc_trim is not None:
        malloc_trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
