"""SIGTERM, as batch systems send it before they take a machine back: the run saves a checkpoint and ends."""

import atexit
import multiprocessing
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging

from clip_hf.distributed import all_gather
from clip_hf.training.training_args import ClipTrainingArguments

logger = logging.get_logger(__name__)

EXIT_CODE = 128 + signal.SIGTERM  # what a shell reports of a process that SIGTERM ended


def outlasting_sigterm(init_worker: Callable[[int], None] | None = None) -> Callable[[int], None]:
    """Returns what makes a data loader's worker go on until its trainer stops; batch systems signal every process.

    Args:
        init_worker: what else a worker begins with.
    """
    atexit.register(_kill_workers)  # after which multiprocessing would wait for them: to it, SIGTERM is enough
    return partial(_ignore_sigterm, init_worker)


def _ignore_sigterm(init_worker: Callable[[int], None] | None, worker_id: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if init_worker is not None:
        init_worker(worker_id)


def _kill_workers() -> None:
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


class StopOnSigterm(TrainerCallback):
    """Saves and stops after the step in which SIGTERM reached any process.

    Attributes:
        is_stopped: whether that has happened.
    """

    def __init__(self) -> None:
        self.is_stopped = False
        self._is_asked_to_stop = False
        self._former_handler: Any = None

    def on_train_begin(
        self, args: ClipTrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Begins to listen; only the main thread of a process can."""
        self.is_stopped = self._is_asked_to_stop = False
        if threading.current_thread() is threading.main_thread():
            self._former_handler = signal.signal(signal.SIGTERM, self._ask_to_stop)

    def on_step_end(
        self, args: ClipTrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Asks all processes, since the signal reaches them in different steps, and they save together."""
        asked = all_gather(torch.tensor([self._is_asked_to_stop], device=args.device))
        if asked.any():
            logger.warning(f"SIGTERM: saving step {state.global_step}, then stopping with exit code {EXIT_CODE}")
            self.is_stopped = True
            control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: ClipTrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Takes an epoch that was cut for no whole one, which would be evaluated and saved, perhaps as the best."""
        if self.is_stopped and not float(state.epoch).is_integer():
            control.should_evaluate = control.should_save = False

    def on_train_end(
        self, args: ClipTrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Leaves SIGTERM to whom it was."""
        if self._former_handler is not None:
            signal.signal(signal.SIGTERM, self._former_handler)
            self._former_handler = None

    def _ask_to_stop(self, *_: Any) -> None:
        self._is_asked_to_stop = True
