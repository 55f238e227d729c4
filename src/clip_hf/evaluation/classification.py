"""How well classes are predicted: accuracies with their intervals, a table of classes, calibration.

Scores are compared in float64. Two that differ by no more than `TIE` are equal, and of equal ones the class named
first comes first.

Shapes: N images, C classes.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

TIE = 1e-12
Z = 1.959964
"""Of the normal distribution, 95 % lie within so many standard deviations."""
NUM_BINS = 15


class Predictions(NamedTuple):
    """What was predicted for some images.

    Args:
        classes: (N,) the most probable class.
        confidences: (N,) its probability.
        ranks: (N,) place of the right class, from 0.
    """

    classes: Tensor
    confidences: Tensor
    ranks: Tensor


def predict(logits: Tensor, labels: Tensor) -> Predictions:
    """Returns the predictions that logits make.

    Args:
        logits: (N, C).
        labels: (N,) the right class of each image.

    Raises:
        ValueError: a logit is not finite. Nothing is larger than NaN, so every prediction would be right.
    """
    if num_wrong := int((~logits.isfinite().all(dim=1)).sum()):
        raise ValueError(
            f"{num_wrong} of {len(logits)} images have logits that are not finite: the model's weights have diverged, "
            "or overflow in their precision, where float32 might not"
        )
    logits = logits.double()
    right = logits.gather(1, labels[:, None])
    is_earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    is_equal = (logits - right).abs() <= TIE
    ranks = ((logits > right + TIE) | (is_equal & is_earlier)).sum(dim=1)
    best = logits.amax(dim=1, keepdim=True)
    classes = (logits >= best - TIE).int().argmax(dim=1)  # the first of the best
    return Predictions(classes, logits.softmax(dim=1).amax(dim=1), ranks)


def classification_metrics(predictions: Predictions, labels: Tensor, num_classes: int) -> dict[str, Any]:
    """Returns top-1 and, of more than five classes, top-5 accuracy; mean accuracy of the classes; calibration error.

    `intervals` holds the 95 % confidence intervals of the accuracies: Wilson's score intervals, and for the mean of
    the classes their combination by variance estimates recovery (Zou and Donner 2008). The mean is of the classes that
    have images: in a part of a data set, some may have none.

    Args:
        predictions: of N images.
        labels: (N,) their right classes.
        num_classes: C.

    Raises:
        ValueError: there are no images, or a label is out of range.
    """
    per_class = [row for row in class_table(predictions, labels, num_classes) if row["num_images"]]
    num_images = len(labels)
    metrics, intervals = {}, {}
    for k in (1, 5) if num_classes > 5 else (1,):
        num_right = int((predictions.ranks < k).sum())
        metrics[f"top_{k}_accuracy"] = num_right / num_images
        intervals[f"top_{k}_accuracy"] = wilson_interval(num_right, num_images)
    accuracies, lows, highs = (np.array([row[name] for row in per_class]) for name in ("accuracy", "low", "high"))
    mean = float(accuracies.mean())
    metrics["mean_per_class_accuracy"] = mean
    intervals["mean_per_class_accuracy"] = (
        max(0.0, mean - math.sqrt(((accuracies - lows) ** 2).sum()) / len(per_class)),
        min(1.0, mean + math.sqrt(((highs - accuracies) ** 2).sum()) / len(per_class)),
    )
    return metrics | {"expected_calibration_error": calibration_error(predictions), "intervals": intervals}


def describe_metrics(metrics: dict[str, Any]) -> str:
    """Returns lines of accuracies with their intervals, and of the calibration error."""
    lines = [
        f"{name.replace('_', ' '):28}{metrics[name]:>9.2%}   {low:.2%} to {high:.2%}"
        for name, (low, high) in metrics["intervals"].items()
    ]
    return "\n".join([*lines, f"{'expected calibration error':28}{metrics['expected_calibration_error']:>9.2%}"])


def class_table(predictions: Predictions, labels: Tensor, num_classes: int) -> list[dict[str, Any]]:
    """Returns for each class its number, its images, their accuracy with its interval, and what it is taken for most.

    Of a class without images, the latter are None.

    Args:
        predictions: of N images.
        labels: (N,) their right classes.
        num_classes: C.

    Raises:
        ValueError: as `classification_metrics`.
    """
    table = []
    for number, row in enumerate(confusion_matrix(predictions, labels, num_classes)):
        num_images, num_right = int(row.sum()), int(row[number])
        low, high = wilson_interval(num_right, num_images) if num_images else (None, None)
        mistakes = row.copy()
        mistakes[number] = 0
        table.append(
            {
                "class": number,
                "num_images": num_images,
                "accuracy": num_right / num_images if num_images else None,
                "low": low,
                "high": high,
                "taken_for": int(mistakes.argmax()) if mistakes.any() else None,
            }
        )
    return table


def confusion_matrix(predictions: Predictions, labels: Tensor, num_classes: int) -> np.ndarray:
    """Returns (C, C) numbers of images, row for the right class, column for the predicted one.

    Args:
        predictions: of N images.
        labels: (N,) their right classes.
        num_classes: C.

    Raises:
        ValueError: as `classification_metrics`.
    """
    if not len(labels):
        raise ValueError("there are no images to classify")
    if not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"labels reach from {labels.min()} to {labels.max()}, but must be in [0, {num_classes})")
    pairs = labels.cpu() * num_classes + predictions.classes.cpu()
    return torch.bincount(pairs, minlength=num_classes**2).unflatten(0, (num_classes, num_classes)).numpy()


def wilson_interval(num_right: int, number: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of a share, which has a width even where all or none are right."""
    share, weight = num_right / number, Z**2 / number
    centre = (share + weight / 2) / (1 + weight)
    half = Z / (1 + weight) * math.sqrt(share * (1 - share) / number + weight / (4 * number))
    return max(0.0, centre - half), min(1.0, centre + half)


def calibration_error(predictions: Predictions, num_bins: int = NUM_BINS) -> float:
    """Returns how far confidence is from accuracy, in bins of equal width (Guo et al. 2017, arXiv 1706.04599, eq. 3).

    Args:
        predictions: of N images.
        num_bins: of the confidence; each includes its upper end.
    """
    confidences = predictions.confidences.double()
    bins = ((confidences * num_bins).ceil().long() - 1).clamp(0, num_bins - 1)
    excess = confidences - (predictions.ranks == 0).double()
    return (torch.bincount(bins, excess, num_bins).abs().sum() / len(confidences)).item()
