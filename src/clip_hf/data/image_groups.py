"""Rows, and samples of several processes, that name the same image, found by its id."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

ImageKey = tuple[int, str | int]
"""An image: the number of its source, and its name or number in it."""


class ImageGroups(Sequence[Sequence[int]]):
    """The rows of each image, images in the order of their first rows: 16 bytes a row.

    Args:
        rows: of all images, those of one image next to each other.
        starts: where in `rows` each image begins, and where the last ends.
    """

    def __init__(self, rows: np.ndarray, starts: np.ndarray) -> None:
        self.rows, self.starts = rows, starts

    @classmethod
    def find(cls, ids: Iterable[str]) -> "ImageGroups | None":
        """Returns the groups of rows with equal ids, None if no two are equal.

        Args:
            ids: of the image of each row.
        """
        names = (hashlib.blake2b(id_.encode(errors="surrogatepass"), digest_size=8).digest() for id_ in ids)
        digests = np.fromiter((int.from_bytes(name) for name in names), np.uint64)
        _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
        if len(first) == len(digests):
            return None
        rows = np.argsort(first[inverse], kind="stable")
        counts = np.bincount(first[inverse], minlength=len(digests))
        return cls(rows, np.concatenate([[0], np.cumsum(counts[counts > 0])]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> list[int]:  # type: ignore[override]
        return self.rows[self.starts[index] : self.starts[index + 1]].tolist()


def find_twins(
    images: Collection[ImageKey], gather: Callable[[Tensor], Tensor], rank: int, world_size: int
) -> tuple[bool, list[ImageKey]]:
    """Returns whether any process has images that one before it has as well, and which this one has.

    Args:
        images: of this process, as many as each of the others has.
        gather: returns the tensors (B,) of all processes as one (world_size * B,).
        rank: of this process.
        world_size: number of processes.
    """
    # Names of any length cannot be gathered, and Python's own hashes differ from process to process.
    names = (hashlib.blake2b(repr(image).encode(), digest_size=8).digest() for image in images)
    own = {int.from_bytes(name, signed=True): image for name, image in zip(names, images, strict=True)}
    seen: set[int] = set()
    twins: list[set[int]] = []
    for digests in gather(torch.tensor(list(own))).view(world_size, -1).tolist():
        twins.append(seen.intersection(digests))
        seen.update(digests)
    return any(twins), [own[digest] for digest in twins[rank]]
