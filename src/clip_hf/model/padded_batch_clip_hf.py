"""Padded tensors of ids, made at once: transformers' lists of numbers take as long again as the tokenizing."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding
from transformers import BatchEncoding
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils import PaddingStrategy


class PaddedEncodings(Sequence[Encoding]):
    """The encodings of a padded batch. Each is padded when it is asked for, since to pad all takes a while.

    Args:
        encodings: without padding.
        length: tokens that each has with its padding.
        pad_id: what fills the ids.
        pad_token: what fills the tokens.
    """

    def __init__(self, encodings: list[Encoding], length: int, pad_id: int, pad_token: str) -> None:
        self._encodings = encodings
        self._padding: dict[str, Any] = {"length": length, "pad_id": pad_id, "pad_token": pad_token}

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self._encodings)

    def __getitem__(self, index: Any) -> Any:
        """Returns the encoding of a text, or those of a slice."""
        found = self._encodings[index]
        for encoding in found if isinstance(index, slice) else [found]:
            encoding.pad(**self._padding)
        return found


def is_plain_padded_batch(text: Any, options: dict[str, Any]) -> bool:
    """Whether the options of a call ask for padded tensors of ids of a list of texts, and for nothing else."""
    others = (
        *("is_split_into_words", "pad_to_multiple_of", "stride", "return_token_type_ids"),
        *("return_overflowing_tokens", "return_special_tokens_mask", "return_offsets_mapping", "return_length"),
    )
    return (
        isinstance(text, list | tuple)
        and options.get("return_tensors") == "pt"
        and options.get("padding_strategy") in (PaddingStrategy.LONGEST, PaddingStrategy.MAX_LENGTH)
        and options.get("truncation_strategy") == TruncationStrategy.LONGEST_FIRST
        and not any(options.get(name) for name in others)
    )


def pad_batch(
    encodings: list[Encoding], shortest: int, pad_id: int, pad_token: str, wants_mask: bool
) -> BatchEncoding:
    """Returns `input_ids` (B, L) and, if wanted, `attention_mask` (B, L), both int64, padded on the right.

    Args:
        encodings: B of them, without padding.
        shortest: least L; it is the length of the longest encoding where that is more.
        pad_id: what fills the ids.
        pad_token: what fills the tokens of the encodings.
        wants_mask: whether to make the mask.
    """
    rows = [encoding.ids for encoding in encodings]
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    longest = max(int(lengths.max()), shortest)
    is_token = np.arange(longest) < lengths[:, None]
    input_ids = np.full(is_token.shape, pad_id)
    input_ids[is_token] = np.fromiter(itertools.chain.from_iterable(rows), np.int64, lengths.sum())
    tensors = {"input_ids": torch.from_numpy(input_ids)}
    if wants_mask:
        tensors["attention_mask"] = torch.from_numpy(is_token.astype(np.int64))
    return BatchEncoding(tensors, PaddedEncodings(encodings, longest, pad_id, pad_token))
