"""Checkpoints that are whole or not there: written beside, brought to the disk, then renamed.

A run may be killed at any moment. What it was writing lies in `_unfinished`, where no one looks for a checkpoint; what
is whole, but takes the place of an older checkpoint of the same step, waits as `checkpoint-N.whole` for that to go.
`settle` brings such a folder in order, and `clip_hf.training.trainer` calls it before anything is read or written.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint, sort_checkpoints
from transformers.utils import logging

logger = logging.get_logger(__name__)

UNFINISHED = "_unfinished"  # transformers uploads nothing that begins with an underscore
WHOLE = ".whole"


def publish(unfinished: Path, folder: Path) -> Path:
    """Makes a written checkpoint visible and returns where it is.

    Args:
        unfinished: the checkpoint, "checkpoint-N", on the same file system.
        folder: of the run's checkpoints.
    """
    _bring_to_disk(unfinished)
    unfinished.rename(folder / f"{unfinished.name}{WHOLE}")
    settle(folder)
    return folder / unfinished.name


def settle(folder: Path) -> None:
    """Ends what a killed run began: whole checkpoints get their names, all others are deleted.

    Args:
        folder: of the run's checkpoints; may be missing.
    """
    for whole in folder.glob(f"checkpoint-*{WHOLE}"):
        checkpoint = whole.with_name(whole.name.removesuffix(WHOLE))
        if checkpoint.exists():
            shutil.rmtree(checkpoint)
        whole.rename(checkpoint)
        _bring_entries_to_disk(folder)
    if (folder / UNFINISHED).exists():
        shutil.rmtree(folder / UNFINISHED)


def discard_oldest(folder: Path, limit: int | None, keep: Iterable[str | None]) -> None:
    """Deletes the oldest checkpoints beyond a number; no half of one is left to be taken for a checkpoint.

    Args:
        folder: of the run's checkpoints.
        limit: number of checkpoints to leave, if there is one.
        keep: checkpoints that count but stay, such as the best one; the newest stays as well.
    """
    if not limit:
        return
    checkpoints = sort_checkpoints(str(folder), use_mtime=True)
    names = {Path(path).name for path in keep if path}
    kept = {path for path in checkpoints if Path(path).name in names} | set(checkpoints[-1:])
    candidates = [checkpoint for checkpoint in checkpoints if checkpoint not in kept]
    for checkpoint in candidates[: max(0, len(checkpoints) - max(limit, len(kept)))]:
        (folder / UNFINISHED).mkdir(exist_ok=True)
        Path(checkpoint).rename(folder / UNFINISHED / Path(checkpoint).name)
    settle(folder)


def checkpoint_to_resume(resume_from: str | bool | None, folder: Path) -> str | None:
    """Returns the checkpoint that a run begins with, or None to begin anew.

    Args:
        resume_from: a checkpoint, or "true" for the last one of the folder, if there is one yet.
        folder: of the run's checkpoints.

    Raises:
        ValueError: there is no such checkpoint.
    """
    if resume_from is None or str(resume_from).lower() == "false":
        return None
    last = get_last_checkpoint(folder) if folder.is_dir() else None
    if str(resume_from).lower() == "true":
        if last is None:
            logger.warning(f"There is no checkpoint in {folder} yet: the run begins anew")
        return last
    if not Path(str(resume_from), "trainer_state.json").is_file():
        raise ValueError(
            f"resume_from_checkpoint is {resume_from}, where there is no trainer_state.json: give a checkpoint's "
            f"folder, or true for the last one of {folder}, which is {last or 'not there yet'}"
        )
    return str(resume_from)


def _bring_to_disk(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(parent, name), os.O_RDWR)
            os.fsync(descriptor)
            os.close(descriptor)
        _bring_entries_to_disk(Path(parent))


def _bring_entries_to_disk(folder: Path) -> None:
    if os.name == "nt":  # which knows no descriptors of folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
