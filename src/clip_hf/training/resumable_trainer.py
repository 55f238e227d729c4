"""transformers' Trainer, made to lose nothing: whole checkpoints, a stop on SIGTERM, and the way back in."""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import IntervalStrategy, TrainOutput, get_last_checkpoint
from transformers.utils import logging

from clip_hf.distributed import all_gather
from clip_hf.training.checkpoints import (
    UNFINISHED,
    checkpoint_to_resume,
    discard_oldest,
    is_resuming,
    publish,
    publish_files,
    require_no_checkpoints,
    settle,
)
from clip_hf.training.engines import divides_parameters
from clip_hf.training.interruption import EXIT_CODE, StopOnSigterm, outlasting_sigterm
from clip_hf.training.training_args import ClipTrainingArguments
from clip_hf.training.unchanged_options import check_unchanged_options, save_unchanged_options

logger = logging.get_logger(__name__)

DATA_STATE = "data_state_{rank}.json"
SECONDS_FOR_THREADS = 0.2  # to let go of their last tensors, before Python ends


class EpochCallback(TrainerCallback):
    """Tells the training set which epoch begins, and the state how far it is, where they would not know."""

    def on_epoch_begin(
        self, args: ClipTrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Calls the method `set_epoch` of a training set that has one; accelerate does so in some engines only."""
        dataset = objects["train_dataloader"].dataset
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch))

    def on_step_end(
        self, args: ClipTrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Corrects the epoch: transformers counts that of a resumed loader from its first batch."""
        loader = objects["train_dataloader"]
        if hasattr(loader, "epoch_progress"):
            state.epoch = loader.epoch_progress


class ResumableTrainer(Trainer):
    """A Trainer that can be killed at any moment and continues, with the same numbers, where it last saved.

    A checkpoint becomes visible when all of it is on the disk, and so does each file of the finished model. SIGTERM
    saves a checkpoint and ends the process with code 143.

    A training set with a method `loader` makes its own batches: `loader(batch_size, rank=, world_size=, num_workers=,
    num_prefetched=, pin_memory=, drop_last=, gather=, init_worker=)` returns an iterable with the methods `set_epoch`,
    `state_dict` and `load_state_dict`, the latter given the states of all processes. Each process's place is saved
    with a checkpoint.

    Args:
        args: as for `transformers.Trainer`.
        kwargs: as for `transformers.Trainer`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sigterm = StopOnSigterm()
        self.add_callback(self._sigterm)
        self.add_callback(EpochCallback())
        self._loader: Any = None
        self._is_saving_checkpoint = False
        self._resumed_checkpoint: str | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains, as `Trainer.train` does, and continues an interrupted run as if nothing had happened.

        Args:
            resume_from_checkpoint: a checkpoint, or "true" for the last whole one of the output folder; a run that has
                none yet begins anew.
            args: as for `Trainer.train`.
            kwargs: as for `Trainer.train`.

        Raises:
            ValueError: there is no such checkpoint, or it holds no more than weights, or DeepSpeed's state of another
                number of processes; or it is of another global batch, optimizer or model; or a new run is to begin
                among the checkpoints of another.
            SystemExit: SIGTERM came; the state of training is saved, and the code is 143.
        """
        folder = Path(self.args.output_dir)
        if self.args.should_save:
            settle(folder)
        self.accelerator.wait_for_everyone()
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, folder)
        if checkpoint is None:
            require_no_checkpoints(folder)
            if is_resuming(resume_from_checkpoint):
                logger.warning(f"There is no checkpoint in {folder} yet: the run begins anew")
        if checkpoint is not None:
            check_unchanged_options(Path(checkpoint), self.args, self.model.config)
            if self.is_deepspeed_enabled:
                self._check_same_processes(Path(checkpoint))
        output = super().train(checkpoint, *args, **kwargs)
        if self._sigterm.is_stopped:
            sys.exit(EXIT_CODE)
        return output

    def end(self) -> None:
        """Leaves the other processes; the last thing that a program does with a trainer."""
        super().end()
        # DeepSpeed keeps gloo's groups, and their threads let go of the last tensors a moment after the work is done:
        # if that falls into the end of Python, the process aborts.
        time.sleep(SECONDS_FOR_THREADS)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        if self._sigterm.is_stopped:  # or transformers would load the best checkpoint
            self.state.best_model_checkpoint = None
        # At a limit of 1 transformers would delete all but the best, from which the same command would train again.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _check_same_processes(self, checkpoint: Path) -> None:
        num_processes = max(1, len(list(checkpoint.glob("rng_state_*.pth"))))
        if num_processes != self.args.world_size:
            raise ValueError(
                f"{checkpoint} holds DeepSpeed's state of {num_processes} processes, and there are "
                f"{self.args.world_size}: start {num_processes}, or begin a new run from its weights, "
                f"with --model {checkpoint}"
            )

    def get_train_dataloader(self) -> DataLoader:
        """Returns the batches of this process: those that the training set makes, or else transformers'."""
        if not hasattr(self.train_dataset, "loader"):
            return super().get_train_dataloader()
        args = self.args
        self._loader = self.train_dataset.loader(
            self._train_batch_size,
            rank=args.process_index,
            world_size=args.world_size,
            num_workers=args.dataloader_num_workers,
            num_prefetched=args.dataloader_prefetch_factor or 2,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            drop_last=args.dataloader_drop_last,
            gather=partial(_gather_on, args.device),
            init_worker=outlasting_sigterm(),
        )
        return self._loader

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        loader = super()._get_dataloader(*args, **kwargs)
        inner = getattr(loader, "base_dataloader", loader)  # accelerate's does not pass on what it is given
        inner.worker_init_fn = outlasting_sigterm(inner.worker_init_fn)
        if not kwargs.get("is_training"):
            inner.generator = torch.Generator()  # or an evaluation would change the numbers that training draws
        return loader

    def _init_training_state(
        self, max_steps: int, num_steps_per_epoch: int, num_epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        epoch, num_batches = super()._init_training_state(
            max_steps, num_steps_per_epoch, num_epochs, checkpoint, trial
        )
        self._resumed_checkpoint = checkpoint
        if checkpoint is not None:  # a run that goes on has been evaluated at its start
            self.args.eval_on_start = self._has_missed_evaluation(max_steps)
        if checkpoint is not None and self.state.best_model_checkpoint is None:  # the folder may have been moved
            best = Path(checkpoint).parent / f"checkpoint-{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None
        if checkpoint is not None and self.state.global_step >= max_steps:
            return num_epochs, 0  # or transformers would take one more step
        if checkpoint is not None and self._loader is not None:
            states = [json.loads(path.read_text()) for path in Path(checkpoint).glob(DATA_STATE.format(rank="*"))]
            self._loader.load_state_dict(states)
            return self._loader.epoch, 0  # batches to skip: the loader is behind them
        return epoch, num_batches

    def _has_missed_evaluation(self, max_steps: int) -> bool:
        """Whether the run was killed between the checkpoint of an epoch's last step and the epoch's evaluation."""
        step = self.state.global_step
        is_at_end = float(self.state.epoch or 0).is_integer() or step >= max_steps
        of_step = (entry for entry in self.state.log_history if entry["step"] == step)
        is_evaluated = any(name.startswith("eval_") for entry in of_step for name in entry)
        return self.args.eval_strategy == IntervalStrategy.EPOCH and is_at_end and not is_evaluated

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        # At the start of a run that goes on, it is the one that was missed.
        is_missed = skip_scheduler and self._resumed_checkpoint is not None
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler and not is_missed)
        if is_missed and self._determine_best_metric(metrics, trial):
            self.state.best_model_checkpoint = self._resumed_checkpoint
        return metrics

    def _determine_best_metric(self, *args: Any, **kwargs: Any) -> bool:
        # With save_strategy=best, this is also whether a step is saved.
        return super()._determine_best_metric(*args, **kwargs) or self._sigterm.is_stopped

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder, UNFINISHED)) if self._is_saving_checkpoint else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial))
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        with self._naming_last_checkpoint(folder, f"The checkpoint of step {self.state.global_step}"):
            self._is_saving_checkpoint = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._is_saving_checkpoint = False
            self._save_data_state(folder / UNFINISHED / checkpoint.name)
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(checkpoint)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                save_unchanged_options(folder / UNFINISHED / checkpoint.name, self.args, self.model.config)
                self.state.save_to_json(str(folder / UNFINISHED / checkpoint.name / TRAINER_STATE_NAME))
                publish(folder / UNFINISHED / checkpoint.name, folder)
                discard_oldest(folder, self.args.save_total_limit, [self.state.best_model_checkpoint])
            self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, as `Trainer.save_model` does; whenever it is killed, each file is the old or the new one.

        Args:
            output_dir: by default that of the run.
            _internal_call: do not push what is saved.

        Raises:
            RuntimeError: it could not be written; the message names the last checkpoint.
        """
        if self._is_saving_checkpoint:
            super().save_model(output_dir, _internal_call=True)
            return
        folder = Path(output_dir or self.args.output_dir)
        with self._naming_last_checkpoint(folder, "The model"):
            super().save_model(str(folder / UNFINISHED / "model"), _internal_call=True)
            if divides_parameters(self.args):  # each process may have written its share
                self.accelerator.wait_for_everyone()
            if self.args.should_save:
                publish_files(folder / UNFINISHED / "model", folder)
                settle(folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    @contextmanager
    def _naming_last_checkpoint(self, folder: Path, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            if self.args.should_save:  # other processes may see no more than that this one is gone
                shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
            last = get_last_checkpoint(self.args.output_dir)
            raise RuntimeError(
                f"{what} could not be written: {error}. "
                + (f"The last good checkpoint is {last}" if last else "There is no other checkpoint yet")
            ) from error

    def _save_data_state(self, checkpoint: Path) -> None:
        if self._loader is not None:
            checkpoint.mkdir(parents=True, exist_ok=True)
            path = checkpoint / DATA_STATE.format(rank=self.args.process_index)
            path.write_text(json.dumps(self._loader.state_dict()), encoding="utf-8")

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._is_saving_checkpoint:  # transformers would upload it from where it is being written
            super()._push_from_checkpoint(checkpoint_folder)


def _gather_on(device: torch.device, tensor: Tensor) -> Tensor:
    """The tensors of all processes; the backend may know those on its devices alone.

    No method: a loader that knew its trainer would be in a circle with it, and go after the queues of its workers.
    """
    return all_gather(tensor.to(device)).cpu()
