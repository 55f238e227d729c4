"""What a training run leaves beside its weights: results.json for machines, curves.png for people."""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_pt_utils import get_model_param_count
from transformers.utils import logging

from clip_hf.model_card.origins import base_model_of
from clip_hf.training.curves import plot_curves
from clip_hf.training.training_args import ClipTrainingArguments

logger = logging.get_logger(__name__)

PACKAGES = ("clip_hf", "torch", "transformers", "accelerate", "deepspeed", "datasets")


class ResultsCallback(TrainerCallback):
    """Writes results.json and curves.png into the output folder when training ends."""

    def on_train_end(
        self, args: ClipTrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Writes both files, on the one process that writes."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)
        results = collect_results(args, state, objects["model"], objects["train_dataloader"].dataset)
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        try:
            plot_curves(state.log_history, folder / "curves.png")
        except ImportError:
            logger.warning("curves.png is not drawn, since matplotlib is missing: `pip install matplotlib`")


def collect_results(args: ClipTrainingArguments, state: TrainerState, model: Any, dataset: Any) -> dict[str, Any]:
    """Returns the facts of a run that can be written as JSON; tokens are masked.

    Args:
        args: of the run.
        state: at its end.
        model: the trained model.
        dataset: the training set; one with `repositories` names its data sets on the Hub.
    """
    batch_size = args.train_batch_size * args.world_size
    evaluations = [entry for entry in state.log_history if "eval_loss" in entry]
    totals = [entry for entry in state.log_history if "train_runtime" in entry]
    return {
        "model": model.config.to_dict(),
        "base_model": base_model_of(model.config.name_or_path),
        "datasets": getattr(dataset, "repositories", []),
        "num_parameters": get_model_param_count(model),
        "training": {
            "steps": state.global_step,
            "epochs": state.epoch,
            "batch_size": batch_size,
            "num_pairs_seen": batch_size * state.global_step,
            "num_processes": args.world_size,
            "device": args.device.type,
            **(totals[-1] if totals else {}),
        },
        "evaluation": _evaluation_of_saved_weights(args, state, evaluations),
        "best": {
            "metric": args.metric_for_best_model,
            "value": state.best_metric,
            "checkpoint": state.best_model_checkpoint,
        },
        "arguments": args.to_dict(),
        "versions": {package: _installed_version(package) for package in PACKAGES},
        "history": state.log_history,
    }


def _evaluation_of_saved_weights(
    args: ClipTrainingArguments, state: TrainerState, evaluations: list[dict[str, Any]]
) -> dict[str, Any] | None:
    if args.load_best_model_at_end and state.best_model_checkpoint is not None:
        evaluations = [entry for entry in evaluations if entry["step"] == state.best_global_step]
    return evaluations[-1] if evaluations else None


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
