"""The reduction of the logits, tile by tile: the matrix of logits is never held, neither forward nor backward.

One pass over the tiles serves both directions: each tile of logits is computed once forward and once more backward,
and adds to the log-sum-exp of its images (rows) and of its texts (columns). That is 8 B N D flops for the loss and all
gradients, where a plain matrix takes 6, in memory for a tile and the gradients themselves. Where logits of one tile
are too far apart for that, a second pass forward adds 2 B N D.

Shapes: B images, N texts, D the width of the joint embedding space.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clip_hf.model.contrastive_loss_clip_hf import EXCLUDED, are_twins, whole_float32

LEAST_SUM = 1e-30
"""Of exponentials in a tile: below, too many of them may be zero in float32, whose least number is about 1e-38."""
LARGEST_DISTANCE = 60.0
"""Of maxima: what is lost where exp(-87), the least in float32, stands for zero is below exp(-27) of a weight."""
BLOCK_SIZE = 2**20
"""Logits that are weighed at a time."""


def reduce_logits_in_tiles(
    image_embeds: Tensor,
    text_embeds: Tensor,
    scale: Tensor,
    first_match: int,
    tile_size: int,
    groups: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `reduce_logits` of the model, from tiles of `tile_size` images by `tile_size` texts.

    Args:
        image_embeds: (B, D).
        text_embeds: (N, D); text `first_match + i` describes image i.
        scale: (), linear.
        first_match: row of `text_embeds` that describes the first image.
        tile_size: side of a tile; need not divide B or N.
        groups: (B,) of the images and (N,) of the texts, as in `reduce_logits`.

    Returns:
        (B,) the logit of each matching pair, (B,) log-sum-exp over the texts of each image, and (N,) log-sum-exp over
        the images of each text.
    """
    return _TiledReduction.apply(image_embeds, text_embeds, scale, first_match, tile_size, groups)


class _TiledReduction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image_embeds: Tensor,
        text_embeds: Tensor,
        scale: Tensor,
        first_match: int,
        tile_size: int,
        groups: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = image_embeds, text_embeds, scale
        matching, images, texts, least = _sum_tiles(*inputs, first_match, tile_size, groups, _add_shared_exponentials)
        if not least > LEAST_SUM:
            matching, images, texts, _ = _sum_tiles(*inputs, first_match, tile_size, groups, _add_exponentials)
        ctx.save_for_backward(*inputs, images.maxima, images.values, texts.maxima, texts.values)
        ctx.first_match, ctx.tile_size, ctx.groups = first_match, tile_size, groups
        return matching, images.maxima + images.values.log(), texts.maxima + texts.values.log()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_matching: Tensor, grad_image_log_sums: Tensor, grad_text_log_sums: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor, None, None, None]:
        image_embeds, text_embeds, scale, image_maxima, image_sums, text_maxima, text_sums = ctx.saved_tensors
        image_weights, text_weights = grad_image_log_sums / image_sums, grad_text_log_sums / text_sums
        needs_image_grad, needs_text_grad = ctx.needs_input_grad[:2]
        grad_images = torch.empty_like(image_embeds) if needs_image_grad else None
        grad_texts = torch.zeros_like(text_embeds) if needs_text_grad else None
        grad_scale = torch.zeros_like(scale)
        exponentials = _Exponentials(image_maxima, image_weights, text_maxima, text_weights)
        # What surrounds the backward pass must not reach the logits.
        with whole_float32(image_embeds.device.type):
            for rows in _slices(len(image_embeds), ctx.tile_size):
                scaled_images = scale * image_embeds[rows]
                pull = torch.zeros_like(scaled_images)  # on each image, by all texts, before the scale
                for columns in _slices(len(text_embeds), ctx.tile_size):
                    grad_logits = scaled_images @ text_embeds[columns].T
                    exponentials.weigh(grad_logits, rows, columns)
                    _fill_twins(grad_logits, 0.0, ctx.groups, rows, columns, ctx.first_match)
                    diagonal, images = _matches(grad_logits, rows.start, columns.start - ctx.first_match)
                    diagonal.add_(grad_matching[images])
                    pull.addmm_(grad_logits, text_embeds[columns])
                    if grad_texts is not None:
                        grad_texts[columns].addmm_(grad_logits.T, scaled_images)
                    del grad_logits, diagonal  # before the next tile is there
                grad_scale += (pull * image_embeds[rows]).sum()
                if grad_images is not None:
                    torch.mul(pull, scale, out=grad_images[rows])
        return grad_images, grad_texts, grad_scale, None, None, None


def _sum_tiles(
    image_embeds: Tensor,
    text_embeds: Tensor,
    scale: Tensor,
    first_match: int,
    tile_size: int,
    groups: tuple[Tensor, Tensor] | None,
    add: Callable[["_Sums", "_Sums", Tensor], Tensor],
) -> tuple[Tensor, "_Sums", "_Sums", Tensor]:
    """Adds up the exponentials of all tiles.

    Returns:
        (B,) the logit of each matching pair, the sums of images and those of texts, and () the least that `add` found.
    """
    matching = image_embeds.new_empty(len(image_embeds))
    least = image_embeds.new_full((), torch.inf)  # left where it is: to ask for it would wait for each tile
    all_images, all_texts = _Sums.of(1, image_embeds), _Sums.of(0, text_embeds)
    with whole_float32(image_embeds.device.type):
        for rows in _slices(len(image_embeds), tile_size):
            scaled_images = scale * image_embeds[rows]
            for columns in _slices(len(text_embeds), tile_size):
                logits = scaled_images @ text_embeds[columns].T
                _fill_twins(logits, EXCLUDED, groups, rows, columns, first_match)
                diagonal, images = _matches(logits, rows.start, columns.start - first_match)
                matching[images] = diagonal
                least = torch.minimum(least, add(all_images[rows], all_texts[columns], logits))
                del logits, diagonal  # before the next tile is there
    return matching, all_images, all_texts, least


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def _fill_twins(
    tile: Tensor,
    value: float,
    groups: tuple[Tensor, Tensor] | None,
    rows: slice,
    columns: slice,
    first_match: int,
) -> None:
    """Overwrites, in place, the entries of a tile that `reduce_logits` leaves out."""
    if groups is not None:
        image_groups, text_groups = groups
        tile.masked_fill_(
            are_twins(image_groups[rows], text_groups[columns], rows.start + first_match - columns.start), value
        )


@dataclass
class _Sums:
    """Sums of exp(logit - maximum) so far, updated in place (arXiv 1805.02867, Algorithm 3).

    Args:
        dim: of a tile, along which they add up: 1 for those of images, 0 for those of texts.
        maxima: of all logits so far, or near them.
        values: the sums.
    """

    dim: int
    maxima: Tensor
    values: Tensor

    @classmethod
    def of(cls, dim: int, embeds: Tensor) -> Self:
        """Returns the sums of nothing, one for each of the embeddings."""
        return cls(dim, embeds.new_full((len(embeds),), -torch.inf), embeds.new_zeros(len(embeds)))

    def __getitem__(self, some: slice) -> "_Sums":
        """Returns a part of them, as a view."""
        return _Sums(self.dim, self.maxima[some], self.values[some])

    def add(self, exponentials: Tensor, references: Tensor, new_maxima: Tensor) -> None:
        """Adds sums of exp(logit - reference), and moves to other maxima."""
        self.values.mul_((self.maxima - new_maxima).exp_()).addcmul_(exponentials, (references - new_maxima).exp())
        self.maxima.copy_(new_maxima)


def _add_shared_exponentials(images: _Sums, texts: _Sums, logits: Tensor) -> Tensor:
    """Adds a tile, which is overwritten, to the sums of its images and of its texts, with one exponential for both.

    The exponential is most of the work beside the products. It is relative to the tile's largest logit: where a row
    or column lies so far below it that nothing of it is left, the least sum shows that.

    Returns:
        () the least sum of a row or column.
    """
    largest = logits.max()
    exponentials = logits.sub_(largest).exp_()
    added = [exponentials.sum(sums.dim) for sums in (images, texts)]
    for sums, part in zip((images, texts), added, strict=True):
        sums.add(part, largest, torch.maximum(sums.maxima, largest + part.log()))
    return torch.minimum(*(part.min() for part in added))


def _add_exponentials(images: _Sums, texts: _Sums, logits: Tensor) -> Tensor:
    """The same with an exponential for each, relative to the largest logit of each row and column so far.

    Returns:
        () the least sum so far, which is 1 or more.
    """
    for sums in (images, texts):
        new_maxima = torch.maximum(sums.maxima, logits.amax(sums.dim))
        exponentials = (logits - new_maxima.unsqueeze(sums.dim)).exp_()
        sums.add(exponentials.sum(sums.dim), new_maxima, new_maxima)
    return torch.minimum(images.values.min(), texts.values.min())


class _Exponentials:
    """exp(logit - image maximum) * image weight + exp(logit - text maximum) * text weight, tile by tile.

    The second exponential is the first one times exp(image maximum - text maximum), which is a product of a number a
    row with a number a column: unless these maxima are so far apart that the first is zero where the second is not.

    Args:
        image_maxima: (B,).
        image_weights: (B,).
        text_maxima: (N,).
        text_weights: (N,).
    """

    def __init__(self, image_maxima: Tensor, image_weights: Tensor, text_maxima: Tensor, text_weights: Tensor) -> None:
        self.image_maxima, self.image_weights = image_maxima, image_weights
        self.text_maxima, self.text_weights = text_maxima, text_weights
        highest, lowest = image_maxima.max(), text_maxima.min()
        self.are_near = bool(highest - lowest <= LARGEST_DISTANCE)
        middle = (highest + lowest) / 2
        self.image_factors = (image_maxima - middle).exp()
        self.text_factors = (middle - text_maxima).exp() * text_weights

    def weigh(self, logits: Tensor, rows: slice, columns: slice) -> None:
        """Overwrites a tile of logits with the sum, some rows at a time, for memory and for the caches' sake."""
        for some in _slices(len(logits), max(1, BLOCK_SIZE // logits.shape[1])):
            block, own = logits[some], slice(rows.start + some.start, rows.start + some.stop)
            maxima, weights = self.image_maxima[own, None], self.image_weights[own, None]
            if self.are_near:
                factors = torch.addcmul(weights, self.image_factors[own, None], self.text_factors[columns])
                block.sub_(maxima).exp_().mul_(factors)
                del factors  # before the next block's are there
            else:
                by_text = (block - self.text_maxima[columns]).exp_()
                block.sub_(maxima).exp_().mul_(weights).addcmul_(by_text, self.text_weights[columns])
                del by_text


def _matches(tile: Tensor, first_image: int, first_text: int) -> tuple[Tensor, slice]:
    """The entries of a tile, as a view, where image and text have one number, and the slice of those images."""
    offset = first_image - first_text
    diagonal = tile.diagonal(offset)
    start = first_image + max(0, -offset)
    return diagonal, slice(start, start + len(diagonal))
