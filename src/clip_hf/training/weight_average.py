"""A moving average of the weights, often a better model than the last of them (Polyak and Juditsky 1992).

After step t, average = d * average + (1 - d) * weights, with d the smaller of `ema_decay` and (1 + t) / (10 + t): the
first weights, which are noise, are soon forgotten. It is kept in float32 at least, by the one process that saves.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState

from clip_hf.training.training_args import ClipTrainingArguments

FOLDER = "ema"


class WeightAverage(TrainerCallback):
    """Averages the weights after each step, and saves the average as a checkpoint of its own.

    Args:
        model: the model, whole on every process.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._average: dict[str, Tensor] = {}

    def begin(self, args: ClipTrainingArguments, checkpoint: str | None) -> None:
        """Starts from the model's weights, or from the average of a checkpoint.

        Args:
            args: of the training.
            checkpoint: that the run is resumed from, if it is.

        Raises:
            ValueError: the checkpoint holds no average.
        """
        if args.ema_decay is None or not args.should_save:
            return
        self._average = {name: _wide(parameter).to(args.device) for name, parameter in self._model.named_parameters()}
        if checkpoint is not None and not self._load(checkpoint):
            raise ValueError(
                f"ema_decay is {args.ema_decay}, but {checkpoint} holds no average of the weights: leave the option "
                f"out, or begin a new run from its weights, with --model {checkpoint}"
            )

    @torch.no_grad()
    def on_step_end(
        self, args: ClipTrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Moves the average towards the weights."""
        if not self._average:
            return
        decay = min(args.ema_decay, (1 + state.global_step) / (10 + state.global_step))
        for name, parameter in self._model.named_parameters():
            self._average[name].lerp_(parameter.to(self._average[name].dtype), 1 - decay)

    def on_train_end(
        self, args: ClipTrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Goes back to the average of the best checkpoint, where transformers has gone back to its weights."""
        if self._average and args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load(state.best_model_checkpoint)

    def save(self, folder: str | Path) -> Path | None:
        """Saves the average, with the model's configuration and its buffers as they are; returns where.

        Args:
            folder: of the checkpoint that the average is added to.
        """
        if not self._average:
            return None
        buffers = {name: tensor for name, tensor in self._model.state_dict().items() if name not in self._average}
        self._model.save_pretrained(Path(folder, FOLDER), state_dict=self._average | buffers)
        return Path(folder, FOLDER)

    def _load(self, checkpoint: str) -> bool:
        """Takes the average of a checkpoint; returns whether it has one."""
        files = sorted(Path(checkpoint, FOLDER).glob("*.safetensors"))
        if not files:
            return False
        saved = {name: tensor for file in files for name, tensor in load_file(file).items()}
        for name, tensor in self._average.items():
            tensor.copy_(saved[name])
        return True


def _wide(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
