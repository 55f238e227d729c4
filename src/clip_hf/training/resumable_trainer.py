"""transformers' Trainer, made to lose nothing: whole checkpoints, a stop on SIGTERM, and the way back in."""

import shutil
import sys
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from clip_hf.training.checkpoints import UNFINISHED, checkpoint_to_resume, discard_oldest, publish, settle
from clip_hf.training.interruption import EXIT_CODE, StopOnSigterm


class ResumableTrainer(Trainer):
    """A Trainer that can be killed at any moment and continues, with the same numbers, where it last saved.

    A checkpoint becomes visible when all of it is on the disk. SIGTERM saves one and ends the process with code 143.

    Args:
        args: as for `transformers.Trainer`.
        kwargs: as for `transformers.Trainer`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sigterm = StopOnSigterm()
        self.add_callback(self._sigterm)
        self._is_saving_checkpoint = False

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains, as `Trainer.train` does, and continues an interrupted run as if nothing had happened.

        Args:
            resume_from_checkpoint: a checkpoint, or "true" for the last whole one of the output folder; a run that has
                none yet begins anew.
            args: as for `Trainer.train`.
            kwargs: as for `Trainer.train`.

        Raises:
            ValueError: there is no such checkpoint.
            SystemExit: SIGTERM came; the state of training is saved, and the code is 143.
        """
        folder = Path(self.args.output_dir)
        if self.args.should_save:
            settle(folder)
        self.accelerator.wait_for_everyone()
        output = super().train(checkpoint_to_resume(resume_from_checkpoint, folder), *args, **kwargs)
        if self._sigterm.is_stopped:
            sys.exit(EXIT_CODE)
        return output

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder, UNFINISHED)) if self._is_saving_checkpoint else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial))
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        self._is_saving_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
            last = get_last_checkpoint(folder)
            raise RuntimeError(
                f"The checkpoint of step {self.state.global_step} could not be written: {error}. "
                + (f"The last good checkpoint is {last}" if last else "There is no other checkpoint yet")
            ) from error
        finally:
            self._is_saving_checkpoint = False
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(checkpoint)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.state.save_to_json(str(folder / UNFINISHED / checkpoint.name / TRAINER_STATE_NAME))
            publish(folder / UNFINISHED / checkpoint.name, folder)
            discard_oldest(folder, self.args.save_total_limit, [self.state.best_model_checkpoint])
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(checkpoint))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # transformers would upload the checkpoint from where it is written: `_save_checkpoint` does, once it is whole.
        pass
