"""How well embeddings find their counterparts: recall at k, in the training batch and over an evaluation set.

Shapes: B queries, N candidates, D the width of the joint embedding space.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import EvalPrediction

from clip_hf.losses import contrastive_loss
from clip_hf.losses.tiled import reduce_logits_in_tiles

RECALL_KS = (1, 5, 10)
# Similarities held at a time: 64 MB in float32.
MAX_SIMILARITIES = 1 << 24


def recall(queries: Tensor, candidates: Tensor, ks: Sequence[int], first_match: int = 0) -> list[float]:
    """Returns the share of queries whose match is among the k most similar candidates, for each k.

    Where candidates are equally similar, as to a model that has collapsed or for captions that occur twice, the result
    is what drawing among them would give on average.

    Args:
        queries: (B, D), unit length.
        candidates: (N, D), unit length; candidate `first_match + i` matches query i.
        ks: numbers of candidates to look at.
        first_match: row of `candidates` that matches the first query.

    Returns:
        for each k, a number in [0, 1].
    """
    better, equal = [], []
    for start in range(0, len(queries), block := max(1, MAX_SIMILARITIES // len(candidates))):
        similarities = queries[start : start + block] @ candidates.T
        match = similarities.diagonal(first_match + start)[:, None]
        better.append((similarities > match).sum(dim=1))
        equal.append((similarities == match).sum(dim=1))  # the match itself included
    num_better, num_equal = torch.cat(better), torch.cat(equal)
    return [((k - num_better) / num_equal).clamp(0, 1).mean().item() for k in ks]


def retrieval_metrics(prediction: EvalPrediction, device: torch.device | str = "cpu") -> dict[str, float]:
    """Returns the loss of an evaluation set as one batch, and its recall at 1, 5 and 10 in both directions.

    Neither depends on how many processes or batches embedded the set. Text retrieval finds the text of an image, image
    retrieval the image of a text (CLIP paper, table 13); `mean_recall` is the mean of the six.

    Args:
        prediction: `predictions` are image embeddings (N, D), text embeddings (N, D) and scale (N,), as NumPy arrays.
        device: where to compute.
    """
    images, texts, scale = (torch.from_numpy(array).to(device) for array in prediction.predictions)
    reduction = partial(reduce_logits_in_tiles, first_match=0, tile_size=math.isqrt(MAX_SIMILARITIES))
    recalls = {
        f"{modality}_retrieval_recall@{k}": value
        for modality, (queries, candidates) in {"text": (images, texts), "image": (texts, images)}.items()
        for k, value in zip(RECALL_KS, recall(queries, candidates, RECALL_KS), strict=True)
    }
    loss = contrastive_loss(images, texts, scale[:1], reduction).item()
    return {"loss": loss, **recalls, "mean_recall": sum(recalls.values()) / len(recalls)}
