"""Which samples a loss that is no number comes from."""

from collections.abc import Sequence

from torch import Tensor


def name_non_finite_samples(image_embeds: Tensor, text_embeds: Tensor, sample_ids: Sequence[str] | None) -> str:
    """Returns a sentence on the pairs of this process with embeddings that are not finite.

    Args:
        image_embeds: (B, E).
        text_embeds: (B, E).
        sample_ids: B names, if the samples have any.
    """
    is_finite = image_embeds.isfinite().all(dim=1) & text_embeds.isfinite().all(dim=1)
    rows = (~is_finite).nonzero().flatten().tolist()
    if not rows:
        return "All embeddings of this process are finite: the samples are another's, or it is the temperature"
    if sample_ids is None:
        return f"Rows {rows} of this process's batch have embeddings that are not finite"
    return f"The samples {[sample_ids[row] for row in rows]} have embeddings that are not finite"
