"""The linear probe against scikit-learn's own tools, on classes that a line does and does not divide."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from clip_hf.evaluation.linear_probe import (
    Split,
    accuracy_of,
    check_training,
    choose_penalty,
    few_shot_curve,
    fit,
    predict_with,
    split_off,
)


def blobs(number=60, num_classes=3, width=5, spread=1.5, seed=0):
    centres = 2 * torch.randn(num_classes, width, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(number) % num_classes
    noise = torch.randn(number, width, generator=torch.Generator().manual_seed(seed))
    return Split(centres[labels] + spread * noise, labels)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_predictions_are_scikit_learns(num_classes):
    train, test = blobs(num_classes=num_classes), blobs(num_classes=num_classes, seed=1)
    plain = LogisticRegression(C=10, max_iter=1000).fit(train.features.double(), train.labels)
    classifier = fit(train, 0.1)
    predictions = predict_with(classifier, test)
    assert predictions.classes.tolist() == plain.predict(test.features.double()).tolist()
    probabilities = plain.predict_proba(test.features.double())
    np.testing.assert_allclose(predictions.confidences, probabilities.max(axis=1), rtol=1e-6)
    assert accuracy_of(classifier, test) == pytest.approx(plain.score(test.features.double(), test.labels))


def test_penalty_is_the_best_of_those_tried():
    train, validation = blobs(45, spread=3), blobs(200, spread=3, seed=1)
    penalty, sweep = choose_penalty(train, validation)
    assert {10.0**exponent for exponent in range(-6, 7, 2)} <= set(sweep)
    assert sweep[penalty] == max(sweep.values()) == accuracy_of(fit(train, penalty), validation)
    neighbours = sorted(abs(np.log10(other / penalty)) for other in sweep if other != penalty)
    assert neighbours[0] == pytest.approx(0.125)
    assert len(sweep) <= 7 + 2 * 4


def test_no_penalty_lies_beyond_the_seven():
    """What the largest penalty learns is as good as what others do: the search does not leave the range for it."""
    constant = blobs(30)._replace(features=torch.zeros(30, 5))
    penalty, sweep = choose_penalty(constant, constant)
    assert penalty == 1e6 and min(sweep) == 1e-6 and max(sweep) == 1e6


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 0], ["dog"], "photos: a classifier needs two classes, but there is only dog"),
        ([0, 2], ["dog", "ox", "cat"], "photos: 1 of 3 classes have no image to learn from, the first: ox"),
    ],
)
def test_training_needs_images_of_two_classes(labels, names, message):
    with pytest.raises(ValueError, match=message):
        check_training(Split(torch.zeros(2, 4), torch.tensor(labels)), names, "photos")


def test_split_off_takes_a_share_of_each_class():
    split = blobs(50)
    rest, held_out = split_off(split, 0.1, 0, ["dog", "ox", "cat"])
    assert torch.bincount(held_out.labels).tolist() == [2, 2, 2]
    rows = torch.cat([rest.features, held_out.features]).tolist()
    assert sorted(rows) == sorted(split.features.tolist())
    assert torch.equal(split_off(split, 0.1, 0, ["dog", "ox", "cat"])[1].features, held_out.features)
    assert not torch.equal(split_off(split, 0.1, 1, ["dog", "ox", "cat"])[1].features, held_out.features)
    with pytest.raises(ValueError, match="class 'ox' has 1 training image: pass validation_data"):
        split_off(split.take(np.array([0, 3, 1])), 0.1, 0, ["dog", "ox", "cat"])


def test_few_shot_curve_rises_and_ends_with_the_smallest_class():
    train, validation, test = (blobs(number, spread=1, seed=seed) for seed, number in enumerate((30, 60, 300)))
    curve = few_shot_curve(train, validation, test, num_draws=2)
    assert [point["shots"] for point in curve] == [1, 2, 4, 8]
    assert all(len(point["accuracies"]) == 2 for point in curve)
    assert curve[0]["mean_accuracy"] < curve[-1]["mean_accuracy"]
    assert curve == few_shot_curve(train, validation, test, num_draws=2)
    whole = few_shot_curve(train, validation, test, shots=(10,), num_draws=1)[0]
    assert whole["mean_accuracy"] == accuracy_of(fit(train, whole["penalties"][0]), test)
