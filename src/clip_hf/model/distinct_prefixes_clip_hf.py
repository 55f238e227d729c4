"""The distinct beginnings of texts, of which a causal tower needs to compute each once.

What a causal tower computes at a position depends on the tokens up to it alone. Captions begin alike, prompts of one
template even more so: of 10,000 captions, three tokens in ten are in a place that another caption has, too. So the
residual stream holds one row for each distinct prefix, and padding has none; only attention sees whole texts, which
are short.

Shapes: T distinct texts, L tokens, U distinct prefixes, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class DistinctPrefixes(NamedTuple):
    """Which places of some texts are the same to a causal tower.

    Args:
        input_ids: (1, U), the last token of each prefix.
        positions: (1, U), where that stands in its text.
        numbers: (T, L), the number of the prefix that ends in each place; behind the end of a text, of any.
        places: (U,), the first place of each prefix among the T * L.
        ends: (1, T), the numbers of the prefixes that are whole texts.
        texts: (B,), which of the texts each one of the batch is.
    """

    input_ids: Tensor
    positions: Tensor
    numbers: Tensor
    places: Tensor
    ends: Tensor
    texts: Tensor

    def require_texts(self, input_ids: Tensor) -> None:
        """Raises ValueError unless these are prefixes of the texts (B, L); a compiled model sees shapes alone."""
        shape = (len(self.texts), self.numbers.shape[1])
        is_same = shape == input_ids.shape
        if is_same and not torch.compiler.is_compiling():
            # Each row up to its end, whose number says which prefix the whole text is.
            length = self.positions[0, self.ends[0, self.texts]][:, None]
            is_padding = torch.arange(shape[1], device=length.device) > length
            is_same = bool(((self.input_ids[0, self.numbers[self.texts]] == input_ids) | is_padding).all())
        if not is_same:
            raise ValueError(
                f"prefixes are those of other texts, of shape {shape}, than input_ids, of shape "
                f"{tuple(input_ids.shape)}: pass what find_prefixes gives for these"
            )

    def embed_positions(self, position_embedding: Tensor) -> Tensor:
        """Returns the position embedding of each prefix's last token, (1, U, D), for that of every position (L, D)."""
        return _select(position_embedding, self.positions)

    def spread(self, rows: Tensor) -> Tensor:
        """Returns whole texts (T, L, D), for one row a prefix (1, U, D)."""
        return _select(rows[0], self.numbers)

    def gather(self, texts: Tensor) -> Tensor:
        """Returns one row a prefix (1, U, D), for whole texts (T, L, D)."""
        return _select(texts.flatten(0, 1), self.places[None])

    def spread_texts(self, rows: Tensor) -> Tensor:
        """Returns one row a text of the batch (B, D), for one a distinct text (1, T, D)."""
        return _select(rows[0], self.texts)


def _select(rows: Tensor, numbers: Tensor) -> Tensor:
    # The gradients of a row that is selected a thousand times are added up in float32, on several threads, and always
    # in the same order. Those of indexing take one thread, and those of an embedding are added in the rows' precision.
    selected = rows.index_select(0, numbers.flatten().to(rows.device))  # device_map may divide the layers
    return selected.view(*numbers.shape, -1)


@torch.compiler.disable  # sizes that depend on the data
def find_distinct_prefixes(input_ids: Tensor, eos_token_id: int) -> DistinctPrefixes:
    """Returns the distinct prefixes of texts.

    Args:
        input_ids: (B, L), each row with an end-of-text token.
        eos_token_id: the end-of-text id.
    """
    is_end = input_ids == eos_token_id
    is_padding = is_end.cumsum(dim=1) > is_end
    # Sorted, so that texts that begin alike are neighbours.
    texts, inverse = input_ids.masked_fill(is_padding, eos_token_id).unique(dim=0, return_inverse=True)
    is_end = texts == eos_token_id
    is_new = texts.new_ones(texts.shape, dtype=torch.bool)
    is_new[1:] = (texts[1:] != texts[:-1]).cumsum(dim=1) > 0
    is_new &= is_end.cumsum(dim=1) <= is_end  # no padding
    places = is_new.flatten().nonzero()[:, 0]
    numbers = (is_new.flatten().cumsum(0) - 1).view_as(texts).masked_fill(~is_new, 0).cummax(dim=0).values
    ends = numbers.gather(1, is_end.int().argmax(dim=1, keepdim=True))
    return DistinctPrefixes(
        texts.flatten()[places][None], (places % texts.shape[1])[None], numbers, places, ends.T, inverse
    )
