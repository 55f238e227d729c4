"""Retrieval of texts by images and of images by texts: exact ranks from tiles, on one process or many.

The rank of a query is the place of its best match in the list of candidates, the most similar first. On ties:

* Similarities are inner products of the given embeddings in float64; two that differ by no more than `TIE` are equal.
* Equal candidates are in random order, and every figure is its mean over these orders: recall is a probability, a rank
  an expectation. With b wrong candidates more similar than the best match, and e wrong and c right ones as similar,

      P(rank > b + j) = C(e, j) / C(e + c, j)   and   E(rank) = b + 1 + e / (c + 1).

  A model that gives every pair one similarity has the recall of chance.

Tiles are computed in float32, in which a pair's place relative to the match is certain unless they are closer than the
bound of float32's error. The few that are closer are computed again in float64; where they are many, as to a model
that has collapsed, so is the whole tile, whose error of D * 2^-53 is far below `TIE`.

So figures are exact for given embeddings, and depend neither on tiles nor on the number of processes. What they cannot
be exacter than is the embeddings: these are float32, and their last bits depend on the batch size and the processor
(`features`), so that ranks among candidates closer than that, 2e-7, may differ between two batch sizes.

Shapes: I images, T texts, D width of the joint embedding space, Q queries.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from clip_hf.distributed import all_gather, rank, world_size

RECALL_KS = (1, 5, 10)
TIE = 1e-12
TILE_SIZE = 4096
"""Side of a tile of similarities: 64 MB in float32."""
PAIRS_PER_BLOCK = 1 << 14
"""Near ties that are computed in float64 at a time: 64 MB of each embedding at D = 512."""
MAX_NEAR_SHARE = 1 / 256
"""Share of near ties in a tile above which all of it in float64 takes less time than they alone."""
ROWS_PER_BLOCK = 256
"""Of such a tile at a time: 8 MB of similarities in float64."""


class Ranks(NamedTuple):
    """Where the best match of each query stands.

    Args:
        num_better: (Q,) wrong candidates more similar than the best match.
        num_equal: (Q,) wrong candidates as similar.
        num_right: (Q,) right candidates as similar, the best match included.
    """

    num_better: Tensor
    num_equal: Tensor
    num_right: Tensor

    @property
    def expected(self) -> Tensor:
        """(Q,) expected rank, from 1."""
        return self.num_better + 1 + self.num_equal.double() / (self.num_right + 1)

    def found(self, k: int) -> Tensor:
        """Returns (Q,) the probability that the best match is among the first k."""
        num_seen = (k - self.num_better).clamp(min=0)
        all_wrong = torch.ones(len(num_seen), dtype=torch.float64)
        for place in range(k):  # the probability that the first j equal candidates are all wrong, factor by factor
            num_wrong = (self.num_equal - place).clamp(min=0).double()
            share = num_wrong / (self.num_equal + self.num_right - place).clamp(min=1)
            all_wrong = torch.where(place < num_seen, all_wrong * share, all_wrong)
        return 1 - all_wrong


def rank_matches(
    image_embeds: Tensor,
    text_embeds: Tensor,
    image_of_text: Tensor,
    tile_size: int = TILE_SIZE,
    on_all_processes: bool = True,
) -> tuple[Ranks, Ranks]:
    """Returns the ranks of texts found by images, and of images found by texts.

    Beside the embeddings it holds one tile and a few numbers a query.

    Args:
        image_embeds: (I, D), unit length, float32.
        text_embeds: (T, D), likewise.
        image_of_text: (T,) index of the image that a text describes; every image has one text at least.
        tile_size: side of a tile.
        on_all_processes: all processes call this with the same embeddings, and share the tiles among themselves.

    Raises:
        ValueError: shapes do not fit, embeddings are not finite and of unit length, or an image has no text.
    """
    _check(image_embeds, text_embeds, image_of_text)
    num_images, num_texts = len(image_embeds), len(text_embeds)
    of_text = _similarities(image_embeds, text_embeds, image_of_text, torch.arange(num_texts))
    of_image = of_text.new_full((num_images,), -torch.inf).scatter_reduce(0, image_of_text, of_text, "amax")
    is_best = (of_text >= of_image[image_of_text] - TIE).long()
    num_right = torch.zeros(num_images, dtype=torch.long).index_add_(0, image_of_text, is_best)

    # |fl(x.y) - x.y| <= u D / (1 - u D) |x| |y| in whatever order the products are added (Higham 2002, section 3.1);
    # the limits are rounded once more.
    width = image_embeds.shape[1]
    error = 1.01 * (width + 2) * 2**-24 / (1 - width * 2**-24) + TIE
    by_image, by_text = _Direction(1, of_image), _Direction(0, of_text)
    starts = range(0, num_images, tile_size)
    own_starts = starts[rank() :: world_size()] if on_all_processes else starts
    # Seen where it takes a while, as with 100,000 images.
    for first_image in tqdm(own_starts, desc="Ranking", leave=False, delay=5, disable=rank() > 0):
        for first_text in range(0, num_texts, tile_size):
            images = range(first_image, min(first_image + tile_size, num_images))
            texts = range(first_text, min(first_text + tile_size, num_texts))
            tile = image_embeds[images.start : images.stop] @ text_embeds[texts.start : texts.stop].T
            for direction in (by_image, by_text):
                near = direction.compare(tile, first_image if direction.dim == 1 else first_text, error)
                count = _count_all if near.sum() > MAX_NEAR_SHARE * near.numel() else _count_some
                count(direction, near, (image_embeds, text_embeds, image_of_text), images.start, texts.start)
    counts = [by_image.num_better, by_image.num_equal, by_text.num_better, by_text.num_equal]
    if on_all_processes:
        counts = [all_gather(count[None]).sum(dim=0) for count in counts]
    better_texts, equal_texts, better_images, equal_images = counts
    one_right = torch.ones(num_texts, dtype=torch.long)
    return Ranks(better_texts, equal_texts, num_right), Ranks(better_images, equal_images, one_right)


def retrieval_metrics(text_ranks: Ranks, image_ranks: Ranks, ks: Sequence[int] = RECALL_KS) -> dict[str, float]:
    """Returns recall at each k, median and mean rank in both directions, and `mean_recall`, the mean of all recalls.

    Text retrieval finds a text of an image, image retrieval the image of a text (CLIP paper, table 13).

    Args:
        text_ranks: of the texts found by images.
        image_ranks: of the images found by texts.
        ks: numbers of candidates to look at.
    """
    metrics: dict[str, float] = {}
    for modality, ranks in {"text": text_ranks, "image": image_ranks}.items():
        metrics |= {f"{modality}_retrieval_recall@{k}": ranks.found(k).mean().item() for k in ks}
        metrics[f"{modality}_retrieval_median_rank"] = float(np.median(ranks.expected.numpy()))
        metrics[f"{modality}_retrieval_mean_rank"] = ranks.expected.mean().item()
    recalls = [value for name, value in metrics.items() if "recall@" in name]
    return metrics | {"mean_recall": sum(recalls) / len(recalls)}


def _check(image_embeds: Tensor, text_embeds: Tensor, image_of_text: Tensor) -> None:
    num_images = len(image_embeds)
    if image_embeds.ndim != 2 or text_embeds.ndim != 2 or image_embeds.shape[1] != text_embeds.shape[1]:
        shapes = f"{tuple(image_embeds.shape)} and {tuple(text_embeds.shape)}"
        raise ValueError(f"the embeddings have shapes {shapes}, but must be (I, D) and (T, D)")
    if image_of_text.shape != (len(text_embeds),):
        raise ValueError(
            f"image_of_text has shape {tuple(image_of_text.shape)}, but there are {len(text_embeds)} texts"
        )
    if len(text_embeds) and not 0 <= image_of_text.min() <= image_of_text.max() < num_images:
        raise ValueError(f"image_of_text must be in [0, {num_images}), but reaches {image_of_text.max()}")
    num_bare = num_images - len(image_of_text.unique())
    if num_bare or not num_images:
        raise ValueError(f"{num_bare} of {num_images} images have no text: leave them out")
    for name, embeds in {"image_embeds": image_embeds, "text_embeds": text_embeds}.items():
        lengths = torch.linalg.vector_norm(embeds, dim=1)
        if not ((lengths - 1).abs() < 1e-3).all():
            raise ValueError(f"{name} must be finite and of unit length; the lengths reach {lengths.max():.3g}")


def _similarities(image_embeds: Tensor, text_embeds: Tensor, images: Tensor, texts: Tensor) -> Tensor:
    """Returns the similarities (P,) of pairs in float64, on the CPU."""
    blocks = [
        (image_embeds[some_images].double() * text_embeds[some_texts].double()).sum(dim=1).cpu()
        for some_images, some_texts in zip(images.split(PAIRS_PER_BLOCK), texts.split(PAIRS_PER_BLOCK), strict=True)
    ]
    return torch.cat(blocks)


class _Direction:
    """Counts of one direction: the candidates more similar to each query than its best match, and those as similar.

    Args:
        dim: along which the candidates lie in a tile: 1 where images are the queries, 0 where texts are.
        best: (Q,) similarity of each query's best match, float64.
    """

    def __init__(self, dim: int, best: Tensor) -> None:
        self.dim, self.best = dim, best
        self.num_better, self.num_equal = torch.zeros(2, len(best), dtype=torch.long)

    def compare(self, similarities: Tensor, first: int, error: float) -> Tensor:
        """Counts the candidates of a tile that are certainly better; returns a mask of the uncertain ones.

        Args:
            similarities: a tile, (images, texts).
            first: number of the tile's first query.
            error: bound of the tile's error.
        """
        queries = slice(first, first + similarities.shape[1 - self.dim])
        best = self.best[queries].to(similarities.device).unsqueeze(self.dim)
        above = similarities > (best + error).float()
        # As bytes, booleans are added in half the time.
        self.num_better[queries] += above.view(torch.uint8).sum(dim=self.dim, dtype=torch.int32).cpu()
        return (similarities >= (best - error).float()) ^ above

    def add(self, queries: Tensor, similarities: Tensor) -> None:
        """Counts candidates by their similarities (P,) in float64 to some queries (P,)."""
        difference = similarities - self.best[queries]
        self.num_better.index_add_(0, queries, (difference > TIE).long())
        self.num_equal.index_add_(0, queries, (difference.abs() <= TIE).long())

    def add_block(self, first: int, similarities: Tensor, is_counted: Tensor) -> None:
        """Counts candidates by a block (images, texts) of similarities in float64, of which some are counted."""
        queries = slice(first, first + similarities.shape[1 - self.dim])
        difference = similarities - self.best[queries].unsqueeze(self.dim)
        self.num_better[queries] += ((difference > TIE) & is_counted).sum(dim=self.dim)
        self.num_equal[queries] += ((difference.abs() <= TIE) & is_counted).sum(dim=self.dim)


def _count_some(
    direction: _Direction, near: Tensor, data: tuple[Tensor, Tensor, Tensor], first_image: int, first_text: int
) -> None:
    """Counts the near ties of a tile pair by pair, but for those that match."""
    image_embeds, text_embeds, image_of_text = data
    rows, columns = near.nonzero(as_tuple=True)
    images, texts = rows.cpu() + first_image, columns.cpu() + first_text
    wrong = image_of_text[texts] != images
    images, texts = images[wrong], texts[wrong]
    similarities = _similarities(image_embeds, text_embeds, images, texts)
    direction.add(images if direction.dim == 1 else texts, similarities)


def _count_all(
    direction: _Direction, near: Tensor, data: tuple[Tensor, Tensor, Tensor], first_image: int, first_text: int
) -> None:
    """Counts the same from a tile in float64, some of its rows at a time."""
    image_embeds, text_embeds, image_of_text = data
    texts = slice(first_text, first_text + near.shape[1])
    columns = text_embeds[texts].double().T
    for start in range(0, near.shape[0], ROWS_PER_BLOCK):
        some = near[start : start + ROWS_PER_BLOCK].cpu()
        images = torch.arange(first_image + start, first_image + start + len(some))
        wrong = image_of_text[texts] != images[:, None]
        similarities = (image_embeds[images].double() @ columns).cpu()
        direction.add_block(first_image + start if direction.dim == 1 else first_text, similarities, some & wrong)


def most_similar(queries: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns similarities and indices (Q, k) of the k candidates most similar to each of a few queries.

    Args:
        queries: (Q, D).
        candidates: (N, D).
        k: how many, or all where there are fewer.
    """
    queries = queries.double()
    values, indices = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
    for first in range(0, len(candidates), TILE_SIZE):
        block = candidates[first : first + TILE_SIZE].double()
        numbers = torch.arange(first, first + len(block)).expand(len(queries), -1)
        values, places = torch.cat([values, queries @ block.T], dim=1).topk(min(k, values.shape[1] + len(block)))
        indices = torch.cat([indices, numbers], dim=1).gather(1, places)
    return values, indices
