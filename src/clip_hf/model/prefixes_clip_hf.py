"""The prefixes of texts: a causal tower needs to compute each but once, and no padding.

What a causal tower computes at a position depends on the tokens up to it alone. Captions begin alike, prompts of one
template even more so: of 10,000 captions, three tokens in ten are in a place that another caption has, too. So the
residual stream holds one row for each prefix, and padding has none; of the layers, only attention sees whole texts,
which are short.

Shapes: T texts that are computed, L tokens, U prefixes, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ROW_MULTIPLE = 256
"""The prefixes of each text are filled up to a multiple of it: compilers and allocators of memory see few sizes."""


class Prefixes(NamedTuple):
    """Which places of some texts the tower computes, and which of these each place shows.

    Args:
        input_ids: (T, L), each row with an end-of-text token.
        numbers: (T, L), the number of the prefix that ends in each place; behind the end of a text, of any.
        places: (U,), where each prefix ends among the T * L places, the first of several. Rows that are there to fill
            up, and that nobody reads, have the first.
        ends: (1, T), the numbers of the prefixes that are whole texts.
        texts: (B,), which of the T texts each one of the batch is.
    """

    input_ids: Tensor
    numbers: Tensor
    places: Tensor
    ends: Tensor
    texts: Tensor

    def require_texts(self, input_ids: Tensor) -> None:
        """Raises ValueError unless these are prefixes of the texts (B, L).

        A compiled model sees shapes alone, and to compare more on an accelerator would be to wait for it.
        """
        shape = (len(self.texts), self.numbers.shape[1])
        is_same = shape == input_ids.shape
        if is_same and input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            ends = (self.places[self.ends[0]] % shape[1])[self.texts]
            is_padding = torch.arange(shape[1]) > ends[:, None]
            is_same = bool(((self.input_ids[self.texts] == input_ids) | is_padding).all())
        if not is_same:
            raise ValueError(
                f"prefixes are those of other texts, of shape {shape}, than input_ids, of shape "
                f"{tuple(input_ids.shape)}: pass what find_prefixes gives for these"
            )

    def spread(self, rows: Tensor) -> Tensor:
        """Returns whole texts (T, L, D), for one row a prefix (1, U, D)."""
        return _select(rows[0], self.numbers)

    def gather(self, texts: Tensor) -> Tensor:
        """Returns one row a prefix (1, U, D), for whole texts (T, L, D)."""
        return _select(texts.flatten(0, 1), self.places[None])

    def spread_texts(self, rows: Tensor) -> Tensor:
        """Returns one row a text of the batch (B, D), for one a computed text (1, T, D)."""
        return _select(rows[0], self.texts)


def _select(rows: Tensor, numbers: Tensor) -> Tensor:
    # On a CPU, the gradients of a row that is selected a thousand times are added up in float32, on several threads,
    # and always in the same order. Those of indexing take one thread, and those of an embedding are added in the
    # rows' precision.
    selected = rows.index_select(0, numbers.flatten().to(rows.device))  # device_map may divide the layers
    return selected.view(*numbers.shape, -1)


@torch.compiler.disable  # sizes that depend on the data
def find_distinct_prefixes(input_ids: Tensor, eos_token_id: int) -> Prefixes:
    """Returns the prefixes of texts, each once.

    Args:
        input_ids: (B, L), each row with an end-of-text token.
        eos_token_id: the end-of-text id.
    """
    # Sorted, so that texts that begin alike are neighbours.
    is_padding = ~_is_token(input_ids, eos_token_id)
    texts, inverse = input_ids.masked_fill(is_padding, eos_token_id).unique(dim=0, return_inverse=True)
    is_new = texts.new_ones(texts.shape, dtype=torch.bool)
    is_new[1:] = (texts[1:] != texts[:-1]).cumsum(dim=1) > 0
    is_new &= _is_token(texts, eos_token_id)
    places = is_new.flatten().nonzero()[:, 0]
    numbers = (is_new.flatten().cumsum(0) - 1).view_as(texts).masked_fill(~is_new, 0).cummax(dim=0).values
    return Prefixes(texts, numbers, places, _find_ends(numbers, texts, eos_token_id), inverse)


@torch.compiler.disable
def find_prefixes_of_each_text(input_ids: Tensor, eos_token_id: int) -> Prefixes:
    """Returns the prefixes of texts, those that texts have in common once for each of them: padding alone is left out.

    Args:
        input_ids: (B, L), each row with an end-of-text token.
        eos_token_id: the end-of-text id.
    """
    is_token = _is_token(input_ids, eos_token_id).flatten()
    places = is_token.nonzero()[:, 0]
    # Padding shows all rows evenly: the zeros of its gradient would else be added to one, one after the other.
    of_padding = torch.arange(len(is_token), device=input_ids.device) % len(places)
    numbers = torch.where(is_token, is_token.cumsum(0) - 1, of_padding).view_as(input_ids)
    texts = torch.arange(len(input_ids), device=input_ids.device)
    places = torch.nn.functional.pad(places, (0, -len(places) % ROW_MULTIPLE))
    return Prefixes(input_ids, numbers, places, _find_ends(numbers, input_ids, eos_token_id), texts)


def _is_token(input_ids: Tensor, eos_token_id: int) -> Tensor:
    is_end = input_ids == eos_token_id
    return is_end.cumsum(dim=1) <= is_end


def _find_ends(numbers: Tensor, input_ids: Tensor, eos_token_id: int) -> Tensor:
    return numbers.gather(1, (input_ids == eos_token_id).int().argmax(dim=1, keepdim=True)).T
