import numpy as np
import pytest
import torch
from torch import nn
from transformers import EvalPrediction

from clip_hf.training import retrieval
from clip_hf.training.retrieval import evaluate_retrieval, recall


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_recall_counts_matches_among_the_k_nearest():
    images, texts = unit(40, 4), unit(60, 4, seed=1)
    nearest = (images @ texts.T).argsort(dim=1, descending=True)
    for k, found in zip((1, 3, 20, 60), recall(images, texts, (1, 3, 20, 60), first_match=7), strict=True):
        expected = [row + 7 in nearest[row, :k].tolist() for row in range(40)]
        assert found == pytest.approx(sum(expected) / 40)


def test_blocks_change_nothing(monkeypatch):
    images, texts = unit(50, 8), unit(50, 8, seed=1)
    expected = recall(images, texts, (1, 5))
    monkeypatch.setattr(retrieval, "MAX_SIMILARITIES", 7 * 50)
    assert recall(images, texts, (1, 5)) == expected


def test_a_collapsed_model_has_the_recall_of_chance():
    same = unit(1, 8).expand(20, 8)
    assert recall(same, same, (1, 5, 20)) == pytest.approx([1 / 20, 5 / 20, 1.0])


def test_a_caption_that_occurs_twice_is_drawn():
    texts = torch.eye(4)
    texts[1] = texts[0]
    assert recall(texts, texts, (1, 2)) == pytest.approx([(0.5 + 0.5 + 1 + 1) / 4, 1.0])


def test_metrics_are_those_of_the_set_as_one_batch():
    images, texts, scale = unit(30, 8), unit(30, 8, seed=1), 20.0
    texts = nn.functional.normalize(texts + images, dim=-1)
    predictions = (images.numpy(), texts[:, None].numpy(), np.ones(30, np.int64), np.full(30, scale, np.float32))
    metrics = evaluate_retrieval(EvalPrediction(predictions, np.arange(30)))

    logits, labels = scale * images @ texts.T, torch.arange(30)
    loss = (nn.functional.cross_entropy(logits, labels) + nn.functional.cross_entropy(logits.T, labels)) / 2
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["text_retrieval_recall@1"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert metrics["image_retrieval_recall@1"] == pytest.approx((logits.argmax(0) == labels).float().mean().item())
    recalls = [metrics[f"{kind}_retrieval_recall@{k}"] for kind in ("text", "image") for k in (1, 5, 10)]
    assert metrics["mean_recall"] == pytest.approx(sum(recalls) / 6)


def test_every_text_of_an_image_is_a_right_answer():
    """Reference: each query's list of candidates, sorted."""
    num_texts = np.array([1, 3, 2, 3, 1])
    images, texts = unit(5, 8), unit(5, 3, 8, seed=1)
    predictions = (images.numpy(), texts.numpy(), num_texts, np.full(5, 20.0, np.float32))
    metrics = evaluate_retrieval(EvalPrediction(predictions, np.arange(5)))

    owner = np.repeat(np.arange(5), num_texts)
    flat = torch.cat([texts[image, :number] for image, number in enumerate(num_texts)])
    similarities = (images.double() @ flat.double().T).numpy()
    found_texts = [np.flatnonzero(owner[np.argsort(-row)] == image)[0] for image, row in enumerate(similarities)]
    found_images = [
        np.flatnonzero(np.argsort(-column) == image)[0] for image, column in zip(owner, similarities.T, strict=True)
    ]
    for modality, places in {"text": found_texts, "image": found_images}.items():
        for k in (1, 5, 10):
            assert metrics[f"{modality}_retrieval_recall@{k}"] == pytest.approx(np.mean(np.array(places) < k))
        assert metrics[f"{modality}_retrieval_mean_rank"] == pytest.approx(np.mean(places) + 1)
