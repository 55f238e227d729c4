"""What may not change where a run goes on: its optimizer's state holds it already, or its numbers depend on it."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from clip_hf.training.training_args import ClipTrainingArguments

FILE = "unchanged_options.json"
# Rates, decay and moments lie in the optimizer's groups, which locks and layers divide.
OF_THE_OPTIMIZER = (
    *("optim", "optim_args", "learning_rate", "image_learning_rate", "text_learning_rate", "layer_decay"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "image_locked_steps", "text_locked_steps"),
)


def save_unchanged_options(checkpoint: Path, args: ClipTrainingArguments, config: PreTrainedConfig) -> None:
    """Writes into a checkpoint what a run that continues it must have, too.

    Args:
        checkpoint: its folder.
        args: of the run.
        config: of the model.
    """
    (checkpoint / FILE).write_text(json.dumps(_options(args, config), indent=2), encoding="utf-8")


def check_unchanged_options(checkpoint: Path, args: ClipTrainingArguments, config: PreTrainedConfig) -> None:
    """Compares a run with the one whose checkpoint it continues.

    Args:
        checkpoint: its folder.
        args: of the run.
        config: of the model.

    Raises:
        ValueError: an option is another.
    """
    if not (checkpoint / FILE).is_file():  # of a trainer of somebody's own
        return
    before = json.loads((checkpoint / FILE).read_text(encoding="utf-8"))
    now = json.loads(json.dumps(_options(args, config)))
    changes = [
        f"{name} was {before.get(name)} and is {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changes:
        raise ValueError(
            f"this is not the run of {checkpoint}: {', '.join(changes)}. Restore it, or begin a new run from the "
            f"checkpoint's weights, with --model {checkpoint}"
        )


def _options(args: ClipTrainingArguments, config: PreTrainedConfig) -> dict[str, Any]:
    options = {name: getattr(args, name) for name in OF_THE_OPTIMIZER}
    options |= {"global_batch_size": args.train_batch_size * args.world_size}
    towers = {f"{name}.": getattr(config, name) for name in config.sub_configs}
    for prefix, part in ({"": config} | towers).items():
        fields = part.__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__.keys()
        names = ("model_type", *fields - part.sub_configs.keys())
        options |= {f"{prefix}{name}": getattr(part, name) for name in names}
    return options
