"""Rows that name the same image, found by its id."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np


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
        names = (hashlib.blake2b(id_.encode(), digest_size=8).digest() for id_ in ids)
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
