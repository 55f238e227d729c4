"""What the evaluation scripts left in a model's folder, for its page.

An evaluation belongs to the page if its results.json lies in a folder of `evaluations/` and was made of the very
weights beside it.
"""

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from transformers.utils import logging

from clip_hf.model_card.credentials import without_credentials
from clip_hf.model_card.json_files import read_json

logger = logging.get_logger(__name__)

FOLDER = "evaluations"
RETRIEVAL = "image-text-retrieval"
ZERO_SHOT = "zero-shot-image-classification"
LINEAR_PROBE = "image-classification"
SPLITS = ("train", "training", "validation", "val", "test")
# A data set on the Hub, perhaps its configuration, and the split, without which none is evaluated.
_HUB_NAME = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?::([\w.-]+))?:([\w.\[\]:%+-]+)")
ACCURACIES = {
    "top_1_accuracy": "top-1",
    "top_5_accuracy": "top-5",
    "mean_per_class_accuracy": "mean of the classes",
}


def digest_weights(folder: Path) -> str | None:
    """Returns a digest of a folder's weights, None where it has none in safetensors.

    Args:
        folder: of a saved model.
    """
    files = sorted(folder.glob("*.safetensors"))
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest() if files else None


def read_evaluations(folder: Path) -> list[EvalResult]:
    """Returns the evaluations of a model's weights as they are now; of others, a warning.

    Several of the same data are called by their folders, too.

    Args:
        folder: of a saved model.

    Raises:
        ValueError: a results.json is none of an evaluation script.
    """
    evaluations: dict[str, list[EvalResult]] = {}
    digest = None
    for file in sorted(folder.glob(f"{FOLDER}/*/results.json")):
        results, digest = read_json(file), digest or digest_weights(folder)
        if missing := sorted({"task", "metrics", "arguments", "weights_digest"} - results.keys()):
            raise ValueError(f"{file} has no {', '.join(missing)}: it is not what an evaluation script writes")
        if results["weights_digest"] != digest:
            logger.warning(f"{file} is of other weights than those of {folder}, and is left out of the page")
            continue
        evaluations[file.parent.name] = _facts(results)
    counts = Counter(key for facts in evaluations.values() for key in {_row(one) for one in facts})
    for name, facts in evaluations.items():
        for one in [one for one in facts if counts[_row(one)] > 1]:
            one.dataset_name += f", {name}"
    return [one for facts in evaluations.values() for one in facts]


def without_repetitions(
    of_training: list[EvalResult], evaluations: list[EvalResult], sources: dict[str, str], is_named: bool
) -> list[EvalResult]:
    """Returns what training and evaluations measured, and once what both did: the same figures of the same data.

    Of such two, training's stays if somebody named its data, and else the evaluation's, which says what the data is.

    Args:
        of_training: its last evaluation.
        evaluations: from `read_evaluations`.
        sources: what training evaluated on, by task.
        is_named: whether somebody gave a name to the pairs that training evaluated on.
    """
    repeated: list[EvalResult] = []
    for task, source in sources.items():
        own = [one for one in of_training if one.task_type == task]
        same_data = [
            one
            for one in evaluations
            if one.task_type == task
            and (one.dataset_type, one.dataset_config, one.dataset_split) == _name_config_split(source)
        ]
        for name in dict.fromkeys(one.dataset_name for one in same_data):
            again = [one for one in same_data if one.dataset_name == name]
            if own and _figures(own) == _figures(again):
                repeated += again if is_named and task == RETRIEVAL else own
    return [one for one in (*of_training, *evaluations) if not any(one is other for other in repeated)]


def _figures(line: list[EvalResult]) -> dict[str | None, float]:
    return {one.metric_name: one.metric_value for one in line}


def _row(one: EvalResult) -> tuple[str, str, str | None]:
    """What the figures of a line of the page have in common."""
    return one.task_type, one.dataset_name, one.dataset_split


def _facts(results: dict[str, Any]) -> list[EvalResult]:
    metrics, names = results["metrics"], dict(ACCURACIES)
    data, config, split = _name_config_split(results["arguments"]["data"])
    name_of_data = data + (f", {config}" if config else "")
    if results["task"] == RETRIEVAL:
        recalls = [name for name in metrics if "recall@" in name]
        names = {name: name.replace("_retrieval_recall@", " R@") for name in recalls}
    limit = results["arguments"].get("limit")
    return [
        EvalResult(
            task_type=results["task"],
            dataset_type=data,
            dataset_name=name_of_data + (f", {limit:,} images" if limit else ""),
            dataset_config=config,
            dataset_split=split,
            metric_type=name.partition("_retrieval_")[2].replace("@", "_at_") or name,
            metric_name=title,
            metric_value=round(metrics[name], 4),
        )
        for name, title in names.items()
        if name in metrics
    ]


def _name_config_split(source: str) -> tuple[str, str | None, str | None]:
    """What is called by a source: a URL, a path on this machine, or a data set on the Hub."""
    is_url = "://" in source
    if not is_url and not Path(source).exists() and (match := _HUB_NAME.fullmatch(source)):
        return match[1], match[2], match[3]
    place = without_credentials(source).partition("://")[2] if is_url else Path(source).resolve()
    *folders, name = Path(place).parts
    return (folders[-1], None, name) if folders and name in SPLITS else (name, None, None)
