"""What training left in results.json, for the page of its model."""

import re
from typing import Any

from huggingface_hub import EvalResult

from clip_hf.model_card.evaluations import ACCURACIES, RETRIEVAL, ZERO_SHOT

RECALL = re.compile(r"eval_(text|image)_retrieval_recall@(\d+)")
# What results.json has, and an evaluation's file of that name has not.
PARTS = ("training", "arguments", "evaluation", "versions", "history")


def facts_of_training(results: dict[str, Any], evaluation_set: dict[str, str]) -> dict[str, Any]:
    """Returns the facts in results.json: the table on training, the pairs, what was begun with, the last evaluation.

    Args:
        results: what training left.
        evaluation_set: see `ModelCardFacts`.

    Raises:
        ValueError: something is missing, so that training has not left it.
    """
    if missing := [name for name in PARTS if name not in results]:
        raise ValueError(f"it has no {', '.join(missing)}, so training has not written it: move it elsewhere")
    run, options = results["training"], results["arguments"]
    last: dict[str, float] = next((entry for entry in reversed(results["history"]) if "loss" in entry), {})
    lines = {
        "pairs seen": f"{run['num_pairs_seen']:,}",
        "steps": f"{run['steps']:,}, each of {run['batch_size']:,} pairs",
        "epochs": _number(run["epochs"]),
        "last loss": _number(last.get("loss")),
        "loss of the evaluation set": _evaluation_losses(results["history"]),
        "mean recall of the evaluation set": _evaluation_recalls(results["history"]),
        "last scale of the logits": _number(last.get("scale")),
        "learning rate": f"{_number(options['learning_rate'])}, {options['lr_scheduler_type']}",
        "warm-up": _warmup(options["warmup_steps"]),
        "weight decay": _number(options["weight_decay"]),
        "optimizer": options["optim"],
        "precision": "bfloat16" if options["bf16"] else "float16" if options["fp16"] else "float32",
        "seed": _number(options["seed"]),
        "processes": f"{run['num_processes']} on {run['device']}",
        # A run that was resumed has that of its last part.
        "time": "" if results.get("resumed_at_step") else _duration(run.get("train_runtime")),
        "versions": ", ".join(f"{name} {version}" for name, version in results["versions"].items() if version),
    }
    facts = {name: results[name] for name in ("base_model", "datasets") if results.get(name)}
    facts["evaluations"] = _evaluations(results["evaluation"] or {}, evaluation_set)
    if "model" in results and not results["model"].get("_name_or_path"):  # it was not opened, but began with nothing
        facts["num_pairs_seen"] = run["num_pairs_seen"]
    return facts | {"training": {name: value for name, value in lines.items() if value}}


def evaluation_sources(results: dict[str, Any]) -> dict[str, str]:
    """Returns the data that a training evaluated on, by task, as its command named them.

    Args:
        results: what training left.
    """
    options = {RETRIEVAL: ("data_arguments", "eval_data"), ZERO_SHOT: ("zero_shot_arguments", "zero_shot_data")}
    found = {task: (results.get(group) or {}).get(name) for task, (group, name) in options.items()}
    return {task: source for task, source in found.items() if source}


def _evaluations(metrics: dict[str, float], evaluation_set: dict[str, str]) -> list[EvalResult]:
    retrieval = [
        EvalResult(
            task_type=RETRIEVAL,
            dataset_type=evaluation_set.get("type", "imagefolder"),
            dataset_name=evaluation_set.get("name", "evaluation set of the training"),
            dataset_split=evaluation_set.get("split"),
            metric_type=f"recall_at_{match[2]}",
            metric_name=f"{match[1]} R@{match[2]}",
            metric_value=round(metrics[match[0]], 4),
        )
        for match in filter(None, map(RECALL.fullmatch, metrics))
    ]
    return retrieval + [
        EvalResult(
            task_type=ZERO_SHOT,
            dataset_type="imagefolder",
            dataset_name="zero-shot set of the training",
            metric_type=name,
            metric_name=title,
            metric_value=round(metrics[f"eval_zero_shot_{name}"], 4),
        )
        for name, title in ACCURACIES.items()
        if f"eval_zero_shot_{name}" in metrics
    ]


def _evaluation_losses(history: list[dict[str, Any]]) -> str:
    """The last loss, and the least if that was before: from there on, the model learnt its data by heart."""
    losses = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    if not losses:
        return ""
    least, last = min(losses, key=lambda step: losses[step]), max(losses)
    overfits = losses[last] > losses[least]
    before = f", after {_number(losses[least])} in step {least:,}: it overfits from there on" if overfits else ""
    return f"{_number(losses[last])} in the end{before}"


def _evaluation_recalls(history: list[dict[str, Any]]) -> str:
    """The mean recall of the first, the middle and the last evaluation."""
    recalls = {entry["step"]: entry["eval_mean_recall"] for entry in history if "eval_mean_recall" in entry}
    steps = sorted(recalls)
    shown = dict.fromkeys([steps[0], steps[len(steps) // 2], steps[-1]]) if steps else {}
    return ", ".join(f"{recalls[step]:.1%} {f'after {step:,} steps' if step else 'before'}" for step in shown)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:,.0f} minutes"


def _warmup(steps: float) -> str:
    return f"{steps:.0%} of the steps" if 0 < steps < 1 else f"{steps:,.0f} steps"
