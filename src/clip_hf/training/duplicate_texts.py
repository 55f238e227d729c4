"""Texts that several pairs of a batch share: found by their tokens, where no label tells.

"A dog" under two photos is right for both, and the loss should not ask a model to tell them apart.
"""

import torch
from torch import Tensor

from clip_hf.model.configuration_clip_hf_towers import ClipHfTextConfig


def group_by_text(input_ids: Tensor, config: ClipHfTextConfig) -> Tensor:
    """Returns (B,), int64: equal numbers for equal texts, on every rank and with any padding.

    Those of two other texts are equal with a probability below 2^-46.

    Args:
        input_ids: (B, L), of which the ids up to the first end of text count.
        config: of the text tower.
    """
    is_end = input_ids.eq(config.eos_token_id).int()  # type: ignore[arg-type]
    is_text = is_end.cumsum(1) - is_end == 0
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(2**62, (config.max_position_embeddings,), generator=generator) * 2 + 1
    # Sums of products modulo 2^64: int64 wraps around.
    return (input_ids * is_text * factors[: input_ids.shape[1]].to(input_ids.device)).sum(1)
