"""How well embeddings find their counterparts, in the training batch and over an evaluation set.

Shapes: B queries, N candidates, I images, D the width of the joint embedding space.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import EvalPrediction

from clip_hf.evaluation.retrieval import rank_matches, retrieval_metrics
from clip_hf.losses import contrastive_loss
from clip_hf.losses.tiled import reduce_logits_in_tiles

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


def evaluate_retrieval(prediction: EvalPrediction, device: torch.device | str = "cpu") -> dict[str, float]:
    """Returns the figures of `evaluation.retrieval` for an evaluation set, and its loss as one batch.

    Neither depends on how many processes or batches embedded the set. All texts of an image are right answers to it;
    the loss is that of the first ones.

    Args:
        prediction: `predictions` are image embeddings (I, D), text embeddings (I, K, D) of up to K texts an image,
            their numbers (I,) and scale (I,), as NumPy arrays.
        device: where to compute.
    """
    images, texts, num_texts, scale = (torch.from_numpy(array) for array in prediction.predictions)
    images, texts = images.float().to(device), texts.float().to(device)
    text_embeds = texts[(torch.arange(texts.shape[1]) < num_texts[:, None]).to(device)]
    image_of_text = torch.repeat_interleave(torch.arange(len(images)), num_texts)
    ranks = rank_matches(images, text_embeds, image_of_text, on_all_processes=False)
    reduction = partial(reduce_logits_in_tiles, first_match=0, tile_size=math.isqrt(MAX_SIMILARITIES))
    loss = contrastive_loss(images, texts[:, 0].contiguous(), scale[:1].float().to(device), reduction).item()
    return {"loss": loss, **retrieval_metrics(*ranks)}
