"""Towers that are held while the other learns (LiT, Zhai et al. 2022, arXiv 2111.07991), for a while or for good.

A tower that is locked for the whole run has no gradients, no optimizer state and no activations. One that is unlocked
later is part of every engine from the beginning, since none can take parameters in afterwards. Until its step comes,
its embeddings pass exact zeros back and its learning rate is zero: weights, moments and the gradient norm stay as they
are. It takes the compute and memory of a tower that learns. While locked, a tower is in evaluation mode, so the
statistics of batch norm stay as well.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from clip_hf.training.parameter_groups import set_rate, tower_of_group
from clip_hf.training.training_args import WHOLE_RUN, ClipTrainingArguments


class TowerLocks(TrainerCallback):
    """Locks towers, and unlocks them when their step comes.

    Args:
        args: how many steps each tower is locked.
        model: the model; gradients of towers that stay locked are turned off here.
    """

    def __init__(self, args: ClipTrainingArguments, model: nn.Module) -> None:
        self._steps = {"vision_model": args.image_locked_steps, "text_model": args.text_locked_steps}
        self._model = model
        self._locked = {tower for tower, steps in self._steps.items() if steps}
        self._optimizer: torch.optim.Optimizer | None = None
        self._tower_of_group: list[str | None] = []
        forever = [tower for tower, steps in self._steps.items() if steps == WHOLE_RUN]
        for tower in forever:
            model.get_submodule(tower).requires_grad_(False)

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Remembers the optimizer, before an engine divides the parameters that tell its groups apart."""
        self._optimizer = optimizer
        self._tower_of_group = [tower_of_group(group, self._model) for group in optimizer.param_groups]

    def on_train_begin(
        self, args: ClipTrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Checks that towers unlock, now that the steps of the epochs are counted."""
        require_unlocking(args, state.max_steps)

    def on_step_begin(
        self, args: ClipTrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Locks what is locked in this step, whichever step the run was resumed at."""
        ends = {tower: num_locked_steps(steps, state.max_steps) for tower, steps in self._steps.items()}
        self._locked = {tower for tower, end in ends.items() if state.global_step < end}
        if self._optimizer is None:
            return
        for group, tower in zip(self._optimizer.param_groups, self._tower_of_group, strict=True):
            if tower in self._locked:
                set_rate(group, 0.0)  # the scheduler computes the next one from the step alone
        if 0 < state.global_step in ends.values():
            _forget_steps_without_gradients(self._optimizer)

    def set_modes(self) -> None:
        """Puts locked towers into evaluation mode, after the model was put into training mode."""
        for tower in self._locked:
            self._model.get_submodule(tower).eval()

    def hold(self, image_embeds: Tensor, text_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Returns both embeddings, (B, E) each; those of a locked tower pass no gradient but zeros."""
        if "vision_model" in self._locked:
            image_embeds = _PassZeros.apply(image_embeds)
        if "text_model" in self._locked:
            text_embeds = _PassZeros.apply(text_embeds)
        return image_embeds, text_embeds


class _PassZeros(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeds: Tensor) -> Tensor:
        return embeds.view_as(embeds)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)


def num_locked_steps(steps: float, max_steps: int) -> int:
    """Returns for how many of a run's steps a tower is locked.

    Args:
        steps: a number of them, a share of the run below 1, or `WHOLE_RUN`.
        max_steps: of the run.
    """
    if steps == WHOLE_RUN:
        return max_steps
    return math.ceil(steps * max_steps) if steps < 1 else int(steps)


def require_unlocking(args: ClipTrainingArguments, max_steps: int) -> None:
    """Checks that a tower locked for a while is unlocked before the run ends, unless that is a trial of one step.

    Args:
        args: how many steps each tower is locked.
        max_steps: of the run.

    Raises:
        ValueError: one would stay locked, and yet cost as much as one that learns.
    """
    for name in ("image_locked_steps", "text_locked_steps"):
        steps = getattr(args, name)
        if steps != WHOLE_RUN and max_steps > 1 and num_locked_steps(steps, max_steps) >= max_steps:
            raise ValueError(
                f"{name} is {steps}, but the run has {max_steps} steps, and the tower would learn in none: give "
                f"{WHOLE_RUN} to lock it for all of the run, which costs less, or fewer steps"
            )


def _forget_steps_without_gradients(optimizer: torch.optim.Optimizer) -> None:
    # Adam corrects its averages by the number of steps they have seen. Where all squares are zero, it is none.
    for state in optimizer.state.values():
        squares = state.get("exp_avg_sq")
        if squares is not None and type(squares).__name__.startswith("OptimState"):  # torchao's, in 8 bits or fewer
            squares = squares.dequantize()
        if squares is not None and not squares.any():
            state["step"].zero_()
