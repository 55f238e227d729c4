"""Metrics of classification against scikit-learn, brute force and published numbers."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

from clip_hf.evaluation.classification import (
    Predictions,
    calibration_error,
    class_table,
    classification_metrics,
    predict,
    wilson_interval,
)
from clip_hf.evaluation.classification import confusion_matrix as our_confusion_matrix
from clip_hf.evaluation.zero_shot import classify


def random_logits(number=200, num_classes=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % num_classes
    logits = torch.randn(number, num_classes, generator=generator, dtype=torch.float64)
    return logits + 1.5 * torch.nn.functional.one_hot(labels, num_classes), labels


def test_accuracies_equal_scikit_learns():
    logits, labels = random_logits()
    predictions = predict(logits, labels)
    metrics = classification_metrics(predictions, labels, 8)
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, logits, k=k)
        assert metrics[f"top_{k}_accuracy"] == pytest.approx(expected)
    assert metrics["mean_per_class_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predictions.classes))
    confusion = our_confusion_matrix(predictions, labels, 8)
    assert (confusion == confusion_matrix(labels, predictions.classes)).all()
    for row, line in zip(confusion, class_table(predictions, labels, 8), strict=True):
        assert line["num_images"] == row.sum() and line["accuracy"] == row[line["class"]] / row.sum()
        assert row[line["taken_for"]] == max(np.delete(row, line["class"]))


def test_a_class_without_images_may_be_predicted_but_has_no_accuracy():
    logits, labels = random_logits(num_classes=6)
    logits, labels = logits[labels != 2], labels[labels != 2]
    predictions = predict(logits, labels)
    present = [row for row in class_table(predictions, labels, 6) if row["num_images"]]
    assert [row["class"] for row in present] == [0, 1, 3, 4, 5] and 2 in predictions.classes
    metrics = classification_metrics(predictions, labels, 6)
    assert metrics["mean_per_class_accuracy"] == pytest.approx(np.mean([row["accuracy"] for row in present]))
    low, high = metrics["intervals"]["mean_per_class_accuracy"]
    assert low < metrics["mean_per_class_accuracy"] < high


@pytest.mark.parametrize("num_classes", [1, 2, 5])
def test_few_classes_have_no_top_5(num_classes):
    logits, labels = random_logits(num_classes=num_classes)
    metrics = classification_metrics(predict(logits, labels), labels, num_classes)
    assert "top_5_accuracy" not in metrics | metrics["intervals"]
    assert num_classes > 1 or metrics["top_1_accuracy"] == 1


def test_of_equal_scores_the_class_named_first_comes_first():
    logits = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0 + 1e-15]], dtype=torch.float64)
    predictions = predict(logits, torch.tensor([0, 1, 2]))
    assert predictions.classes.tolist() == [0, 0, 1]
    assert predictions.ranks.tolist() == [0, 1, 1]


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_no_numbers_are_refused(number):
    logits, labels = random_logits(9)
    logits[4:6, 2] = number
    with pytest.raises(ValueError, match=r"2 of 9 images have logits that are not finite.* where float32 might not"):
        predict(logits, labels)


@pytest.mark.parametrize(("num_right", "number"), [(0, 10), (10, 10), (3, 12), (700, 1000), (1, 1)])
def test_intervals_are_scipys(num_right, number):
    expected = binomtest(num_right, number).proportion_ci(method="wilson")
    assert wilson_interval(num_right, number) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_interval_of_the_mean_holds_it_as_often_as_promised():
    generator = np.random.default_rng(0)
    shares, counts = np.array([0.02, 0.3, 0.6, 0.95]), np.array([15, 30, 50, 20])
    labels = torch.arange(4).repeat_interleave(torch.from_numpy(counts))
    num_held = 0
    for _ in range(400):
        is_right = torch.from_numpy(generator.random(len(labels)) < shares[labels.numpy()])
        wrong = (labels + 1) % 4
        predictions = Predictions(torch.where(is_right, labels, wrong), is_right.double(), (~is_right).long())
        low, high = classification_metrics(predictions, labels, 4)["intervals"]["mean_per_class_accuracy"]
        num_held += low <= shares.mean() <= high
    assert 0.92 <= num_held / 400 <= 0.99


def test_calibration_error_equals_a_brute_force():
    logits, labels = random_logits(500)
    predictions = predict(logits, labels)
    confidences, expected = logits.softmax(dim=1).max(dim=1).values.numpy(), 0.0
    is_right = (predictions.classes == labels).numpy()
    for low in np.arange(15) / 15:
        here = (confidences > low) & (confidences <= low + 1 / 15)
        if here.any():
            expected += here.mean() * abs(is_right[here].mean() - confidences[here].mean())
    assert calibration_error(predictions) == pytest.approx(expected)
    sure = Predictions(labels, torch.ones(len(labels)), torch.zeros(len(labels)))
    assert calibration_error(sure) == 0
    assert calibration_error(sure._replace(ranks=torch.ones(len(labels)))) == 1


def test_blocks_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    features, weights = (
        torch.nn.functional.normalize(torch.randn(rows, 16, generator=generator), dim=1) for rows in (50, 6)
    )
    labels = torch.arange(50) % 6
    whole = classify(features, weights, 20.0, labels)
    monkeypatch.setattr("clip_hf.evaluation.zero_shot.LOGITS_PER_BLOCK", 7 * 6)
    for one, other in zip(whole, classify(features, weights, 20.0, labels), strict=True):
        torch.testing.assert_close(one, other)
    expected = predict(20 * features.double() @ weights.double().T, labels)
    assert torch.equal(whole.ranks, expected.ranks)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "there are no images"),
        ([0, 3], r"labels reach from 0 to 3, but must be in \[0, 3\)"),
    ],
)
def test_unfit_labels_are_refused(labels, message):
    labels = torch.tensor(labels, dtype=torch.long)
    predictions = Predictions(labels, torch.ones(len(labels)), torch.zeros(len(labels)))
    with pytest.raises(ValueError, match=message):
        classification_metrics(predictions, labels, 3)
