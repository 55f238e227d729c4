"""The modules of `evaluate`, loaded from their files without a network, added to batch by batch."""

from pathlib import Path

import evaluate
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from clip_hf.evaluation import retrieval
from tests.evaluation.test_classification import random_logits
from tests.evaluation.test_retrieval import brute_force, unit

FOLDER = Path(retrieval.__file__).parent


@pytest.fixture(scope="module")  # Python imports the modules as parts of one package, which has one place
def load(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluate.config.HF_MODULES_CACHE", str(folder / "modules"))
        yield lambda name: evaluate.load(str(FOLDER / name), cache_dir=str(folder / "cache"))


def test_retrieval_equals_a_brute_force(load):
    counts = [1, 3, 7, 2, 1, 4]
    images, texts = unit(6, 8), unit(sum(counts), 8, seed=1)
    metric = load("retrieval_metric.py")
    captions = texts.split(counts)
    for rows in (slice(0, 4), slice(4, 6)):
        added = [some.numpy() for some in captions[rows]]
        metric.add_batch(image_embeds=images[rows].numpy(), text_embeds=added)
    expected = brute_force(images, texts, torch.arange(6).repeat_interleave(torch.tensor(counts)))
    assert metric.compute() == pytest.approx(expected)


def test_classification_equals_scikit_learn(load):
    logits, labels = random_logits(120)
    metric = load("classification_metric.py")
    for rows in torch.arange(120).split(50):
        metric.add_batch(predictions=logits[rows].float().numpy(), references=labels[rows].numpy())
    found = metric.compute()
    for k in (1, 5):
        assert found[f"top_{k}_accuracy"] == pytest.approx(top_k_accuracy_score(labels, logits, k=k))
    assert found["mean_per_class_accuracy"] == pytest.approx(balanced_accuracy_score(labels, logits.argmax(dim=1)))
    assert set(found) == {
        *("top_1_accuracy", "top_5_accuracy", "mean_per_class_accuracy"),
        *("expected_calibration_error", "intervals"),
    }
