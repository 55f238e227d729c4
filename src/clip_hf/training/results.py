"""What a training run leaves beside its weights: results.json for machines, curves.png for people."""

import json
import shlex
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_pt_utils import get_model_param_count
from transformers.utils import logging

from clip_hf.distributed import all_gather
from clip_hf.model_card.credentials import without_credentials
from clip_hf.model_card.origins import base_model_of
from clip_hf.training.curves import plot_curves
from clip_hf.training.training_args import ClipTrainingArguments

logger = logging.get_logger(__name__)

PACKAGES = ("clip_hf", "torch", "transformers", "accelerate", "deepspeed", "datasets")


class ResultsCallback(TrainerCallback):
    """Writes results.json and curves.png into the output folder when training ends.

    Attributes:
        facts: what results.json is to have beside what the run itself knows; a command puts its options here.
    """

    facts: dict[str, Any]

    def __init__(self) -> None:
        self.facts = {}

    def add_options(self, **options: Any) -> None:
        """Adds the command that is running and the options that are not the trainer's.

        Args:
            options: dataclasses, by the name that they are to have in results.json.
        """
        argv = [argument for argument in sys.argv if not argument.startswith("--local_rank=")]  # DeepSpeed's addition
        self.facts |= {"command": shlex.join(without_credentials(argv))}  # before quotes get into addresses
        self.facts |= {name: asdict(values) for name, values in options.items()}

    def on_train_begin(
        self, args: ClipTrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Notes what nobody knows at the end: which step this is, and what the model is, whose folder may go."""
        if state.is_world_process_zero:
            self.facts["resumed_at_step"] = state.global_step
            self.facts["base_model"] = base_model_of(objects["model"].config.name_or_path)

    def on_train_end(
        self, args: ClipTrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Writes both files, on the one process that writes; the weights are not saved yet, and no failure ends it."""
        loader = objects["train_dataloader"]
        data = _count_samples(loader, args.device)  # of all processes
        if not state.is_world_process_zero:
            return
        for name, counts in data.items():
            if counts["broken"]:
                logger.warning(f"{name}: {counts['broken']:,} of {counts['read']:,} samples were broken")
        folder = Path(args.output_dir)
        try:
            results = collect_results(args, state, objects["model"], loader.dataset) | {"data": data} | self.facts
            text = json.dumps(without_credentials(results), indent=2) + "\n"
            if args.hub_token:  # however the command spells its option
                text = text.replace(args.hub_token, "***")
            unfinished = folder / "results.json.unfinished"
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(folder / "results.json")
        except Exception as error:
            logger.warning(f"results.json is not written: {error!r}")
        try:
            plot_curves(state.log_history, folder / "curves.png")
        except ImportError:
            logger.warning("curves.png is not drawn, since matplotlib is missing: `pip install matplotlib`")
        except Exception as error:
            logger.warning(f"curves.png is not drawn: {error!r}")


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
    of_best = [entry for entry in evaluations if entry["step"] == _step_of_best_checkpoint(state)]
    metric = args.metric_for_best_model
    return {
        "model": model.config.to_dict(),
        "datasets": getattr(dataset, "repositories", []),
        "num_parameters": get_model_param_count(model),
        "training": {
            "steps": state.global_step,
            "max_steps": state.max_steps,
            "epochs": state.epoch,
            "batch_size": batch_size,
            "num_pairs_seen": batch_size * state.global_step,
            "num_processes": args.world_size,
            "device": args.device.type,
            **(totals[-1] if totals else {}),
        },
        # Of the weights that are saved.
        "evaluation": next(reversed(of_best if args.load_best_model_at_end and of_best else evaluations), None),
        "best": {
            "metric": metric,
            "value": of_best[-1].get(f"eval_{str(metric).removeprefix('eval_')}") if of_best else state.best_metric,
            "checkpoint": state.best_model_checkpoint,
        },
        "arguments": args.to_dict(),
        "versions": {package: _installed_version(package) for package in PACKAGES},
        "history": state.log_history,
    }


def _count_samples(loader: Any, device: torch.device) -> dict[str, dict[str, int]]:
    """Samples of each source that were read and that were broken, where the loader counts them."""
    if not hasattr(loader, "broken"):
        return {}
    counts = torch.tensor([[loader.broken.num_read, loader.broken.num_broken]], device=device)  # (1, 2, sources)
    read, broken = all_gather(counts).sum(0).tolist()
    return {
        name: {"read": read[number], "broken": broken[number]}
        for number, name in enumerate(loader.broken.source_names)
    }


def _step_of_best_checkpoint(state: TrainerState) -> int | None:
    # `best_global_step` and `best_metric` are of the best evaluation, saved or not.
    if state.best_model_checkpoint is None:
        return None
    return int(Path(state.best_model_checkpoint).name.rpartition("-")[2])


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
