"""A linear classifier on a frozen image tower, as in the CLIP paper (section 3.2 and appendix A.3).

Logistic regression by L-BFGS, at most 1,000 iterations, on the features before the projection. Its L2 penalty is the
best on a validation split: of seven from 1e-6 to 1e6, then of those halfway between the best and its neighbours, and
so on down to an eighth of a decade, none of them beyond the seven. The classifier that is tested learns from training
and validation images together.

Shapes: N images, D width of the features, C classes.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from tqdm import tqdm
from transformers.utils import logging

from clip_hf.evaluation.classification import Predictions, predict

logger = logging.get_logger(__name__)

MAX_ITERATIONS = 1000
COARSE_EXPONENTS = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
FINEST_STEP = 0.125
SHOTS = (1, 2, 4, 8, 16)


class Split(NamedTuple):
    """Images with their classes.

    Args:
        features: (N, D).
        labels: (N,) from 0.
    """

    features: Tensor
    labels: Tensor

    def __add__(self, other: "Split") -> "Split":  # type: ignore[override]
        return Split(torch.cat([self.features, other.features]), torch.cat([self.labels, other.labels]))

    def take(self, rows: np.ndarray) -> "Split":
        """Returns some of the images."""
        return Split(self.features[rows], self.labels[rows])


def check_training(train: Split, class_names: Sequence[str], source: str) -> None:
    """Raises ValueError unless there are two classes, and training images of each.

    Args:
        train: what a classifier is to learn from.
        class_names: C names.
        source: of the images, for the message.
    """
    if len(class_names) < 2:
        raise ValueError(f"{source}: a classifier needs two classes, but there is only {class_names[0]}")
    missing = [name for row, name in enumerate(class_names) if not (train.labels == row).any()]
    if missing:
        raise ValueError(
            f"{source}: {len(missing)} of {len(class_names)} classes have no image to learn from, the first: "
            f"{', '.join(missing[:10])}. Raise the limit, or repair the images"
        )


def fit(train: Split, penalty: float) -> LogisticRegression:
    """Returns the classifier with an L2 penalty (the paper's lambda, 1 / C in scikit-learn)."""
    classifier = LogisticRegression(C=1 / penalty, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # as in the paper, 1,000 iterations are the end
        return classifier.fit(train.features.double().numpy(), train.labels.numpy())


def predict_with(classifier: LogisticRegression, split: Split) -> Predictions:
    """Returns the classifier's predictions for images."""
    logits = torch.from_numpy(classifier.decision_function(split.features.double().numpy()))
    if logits.ndim == 1:  # of two classes, scikit-learn gives the second one's logit
        logits = torch.stack([torch.zeros_like(logits), logits], dim=1)
    return predict(logits, split.labels)


def accuracy_of(classifier: LogisticRegression, split: Split) -> float:
    """Returns top-1 accuracy."""
    return (predict_with(classifier, split).ranks == 0).double().mean().item()


def choose_penalty(train: Split, validation: Split) -> tuple[float, dict[float, float]]:
    """Returns the penalty that is best on the validation split, the larger of equals, and the accuracies of all tried.

    Args:
        train: what classifiers learn from.
        validation: what they are compared on.
    """
    accuracies: dict[float, float] = {}
    bar = tqdm(disable=None, leave=False, desc="Penalties")

    def best_of(exponents: Sequence[float]) -> float:
        for exponent in exponents:
            if exponent not in accuracies and COARSE_EXPONENTS[0] <= exponent <= COARSE_EXPONENTS[-1]:
                accuracies[exponent] = accuracy_of(fit(train, 10**exponent), validation)
                bar.update()
        return max(accuracies, key=lambda exponent: (accuracies[exponent], exponent))

    best, step = best_of(COARSE_EXPONENTS), (COARSE_EXPONENTS[1] - COARSE_EXPONENTS[0]) / 2
    while step >= FINEST_STEP:
        best, step = best_of((best - step, best + step)), step / 2
    bar.close()
    return 10**best, {10**exponent: accuracies[exponent] for exponent in sorted(accuracies)}


def split_off(split: Split, share: float, seed: int, class_names: Sequence[str]) -> tuple[Split, Split]:
    """Returns the images without, and with alone, a share of each class: one at least, if the class has two.

    Args:
        split: to be divided.
        share: of each class, between 0 and 1.
        seed: of the draw.
        class_names: C names.

    Raises:
        ValueError: a class has only one image.
    """
    generator = np.random.default_rng(seed)
    held_out = []
    for label, rows in enumerate(_rows_of_classes(split)):
        if len(rows) < 2:
            problem = f"class '{class_names[label]}' has {len(rows)} training image"
            raise ValueError(f"{problem}: pass validation_data, or more images")
        number = min(len(rows) - 1, max(1, round(share * len(rows))))
        held_out.append(generator.permutation(rows)[:number])
    chosen = np.sort(np.concatenate(held_out))
    rest = np.setdiff1d(np.arange(len(split.labels)), chosen)
    return split.take(rest), split.take(chosen)


def few_shot_curve(
    train: Split, validation: Split, test: Split, shots: Sequence[int] = SHOTS, num_draws: int = 3, seed: int = 0
) -> list[dict[str, Any]]:
    """Returns accuracy on the test split after training on few images of each class.

    The penalty of each draw is chosen on the whole validation split, which has more images than the draw. Numbers of
    images that some class does not have are left out.

    Args:
        train: what is drawn from.
        validation: for the choice of the penalty.
        test: what is predicted.
        shots: numbers of images of each class.
        num_draws: of each number.
        seed: of the draws.
    """
    classes = _rows_of_classes(train)
    most = min(map(len, classes))
    if max(shots) > most:
        logger.warning(f"The smallest class has {most} training images: the few-shot curve ends there")
    curve = []
    bar = tqdm(total=num_draws * sum(number <= most for number in shots), disable=None, desc="Few-shot curve")
    for number in (number for number in shots if number <= most):
        accuracies, penalties = [], []
        for draw in range(num_draws):
            generator = np.random.default_rng([seed, number, draw])
            some = train.take(np.concatenate([generator.permutation(rows)[:number] for rows in classes]))
            penalty, _ = choose_penalty(some, validation)
            penalties.append(penalty)
            accuracies.append(accuracy_of(fit(some, penalty), test))
            bar.update()
        mean, deviation = float(np.mean(accuracies)), float(np.std(accuracies))
        curve.append(
            {
                "shots": number,
                "mean_accuracy": mean,
                "standard_deviation": deviation,
                "accuracies": accuracies,
                "penalties": penalties,
            }
        )
    bar.close()
    return curve


def _rows_of_classes(split: Split) -> list[np.ndarray]:
    labels = split.labels.numpy()
    return [np.flatnonzero(labels == label) for label in range(int(labels.max()) + 1)]
