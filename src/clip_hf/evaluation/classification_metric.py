"""Accuracies and calibration of classification, as a module of `evaluate`: `evaluate.load(<this file>)`."""

from typing import Any

import datasets
import evaluate
import torch

from clip_hf.evaluation.classification import classification_metrics, predict

DESCRIPTION = """
Top-1 and top-5 accuracy, mean accuracy of the classes, each with its 95 % confidence interval, and the expected
calibration error in 15 bins. Of classes with equal scores, the one named first comes first.
"""
INPUTS = """
Args:
    predictions: the logits (classes,) of each image.
    references: the number of its right class; the mean is of the classes that occur.

Returns:
    top_1_accuracy, top_5_accuracy (of more than five classes), mean_per_class_accuracy, expected_calibration_error,
    and intervals, the lower and upper end for each accuracy.
"""
CITATION = """
@inproceedings{guo2017calibration,
    title = {On Calibration of Modern Neural Networks},
    author = {Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
    booktitle = {International Conference on Machine Learning},
    year = {2017}
}
"""


class ZeroShotClassification(evaluate.Metric):
    """Classification by logits; `add_batch` takes any number of images at a time."""

    def _info(self) -> evaluate.MetricInfo:
        logits = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": logits, "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: list, references: list) -> dict[str, Any]:
        logits, labels = torch.tensor(predictions), torch.tensor(references)
        return classification_metrics(predict(logits, labels), labels, logits.shape[1])
