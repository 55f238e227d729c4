"""Checkpoints that are whole or not there: written beside, brought to the disk, then renamed.

A run may be killed at any moment. What it was writing lies in `_unfinished`, where no one looks for a checkpoint; what
is whole, but takes the place of an older checkpoint of the same step, waits as `checkpoint-N.whole` for that to go.
`settle` brings such a folder in order, and is called before anything is read or written. A tokenizer takes the same
way, and the files of a finished model, one by one.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint, sort_checkpoints

UNFINISHED = "_unfinished"  # transformers uploads nothing that begins with an underscore
WHOLE = ".whole"


def publish(unfinished: Path, folder: Path) -> Path:
    """Makes a written checkpoint, or another folder, visible and returns where it is.

    Args:
        unfinished: the folder, such as "checkpoint-N", on the same file system.
        folder: of the run.
    """
    _bring_to_disk(unfinished)
    unfinished.rename(folder / f"{unfinished.name}{WHOLE}")
    settle(folder)
    return folder / unfinished.name


def publish_files(unfinished: Path, folder: Path) -> None:
    """Moves written files, each of which takes the place of an older one at once.

    Args:
        unfinished: folder of the files, on the same file system.
        folder: where they go.
    """
    _bring_to_disk(unfinished)
    for parent, _, names in os.walk(unfinished):
        target = folder / Path(parent).relative_to(unfinished)
        target.mkdir(exist_ok=True)
        for name in names:
            Path(parent, name).replace(target / name)
        _bring_entries_to_disk(target)
    shutil.rmtree(unfinished, ignore_errors=True)


def settle(folder: Path) -> None:
    """Ends what a killed run began: what is whole gets its name, all else is deleted.

    Args:
        folder: of the run; may be missing.
    """
    for whole in (*folder.glob(f"checkpoint-*{WHOLE}"), *folder.glob(f"tokenizer{WHOLE}")):
        published = whole.with_name(whole.name.removesuffix(WHOLE))
        if published.exists():
            shutil.rmtree(published)
        whole.rename(published)
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


def is_resuming(resume_from: str | bool | None) -> bool:
    """Returns whether a run is to continue another, by the option `resume_from_checkpoint`."""
    return resume_from is not None and str(resume_from).lower() != "false"


def last_checkpoint(folder: Path) -> str | None:
    """Returns the checkpoint of the highest step, None where there is none.

    Args:
        folder: of the run; may be missing.
    """
    return get_last_checkpoint(folder) if folder.is_dir() else None


def require_no_checkpoints(folder: Path) -> None:
    """Checks that a new run may begin in a folder.

    Args:
        folder: of the run; may be missing.

    Raises:
        ValueError: there are checkpoints of an earlier run, one of which could later be taken for this one's last.
    """
    found = next(folder.glob("checkpoint-[0-9]*"), None)
    if found is not None:
        raise ValueError(
            f"{folder} has checkpoints of a run already, such as {found.name}, among which a new one does not begin: "
            "continue with --resume_from_checkpoint true, name another --output_dir, or delete them"
        )


def checkpoint_to_resume(resume_from: str | bool | None, folder: Path) -> str | None:
    """Returns the checkpoint that a run begins with, or None to begin anew.

    Args:
        resume_from: a checkpoint, or "true" for the last one of the folder, if there is one yet.
        folder: of the run's checkpoints.

    Raises:
        ValueError: there is no such checkpoint, or it holds no more than weights, or the folder has later ones.
    """
    if not is_resuming(resume_from):
        return None
    last = last_checkpoint(folder)
    if str(resume_from).lower() == "true":
        if last is not None:
            _require_state(Path(last))
        return last
    if not Path(str(resume_from), "trainer_state.json").is_file():
        raise ValueError(
            f"resume_from_checkpoint is {resume_from}, where there is no trainer_state.json: give a checkpoint's "
            f"folder, or true for the last one of {folder}, which is {last or 'not there yet'}"
        )
    _require_state(Path(str(resume_from)))
    if last is not None and not Path(last).samefile(str(resume_from)):
        raise ValueError(
            f"resume_from_checkpoint is {resume_from}, but {folder} has checkpoints that do not come from it, such as "
            f"{Path(last).name}, which would later be taken for this run's last: delete them, or name another "
            "--output_dir"
        )
    return str(resume_from)


def _require_state(checkpoint: Path) -> None:
    names = [path.name for path in checkpoint.iterdir()]
    # Each engine has its own name for the optimizer: a file or folder "optimizer...", DeepSpeed "global_step...".
    if "scheduler.pt" not in names or not any(name.startswith(("optimizer", "global_step")) for name in names):
        raise ValueError(
            f"{checkpoint} has no optimizer and schedule, as save_only_model leaves it: its run cannot be continued. "
            f"Begin a new run from its weights, with --model {checkpoint}, or resume from a checkpoint that has them"
        )


def _bring_to_disk(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(Path(parent, name), "rb+") as file:
                os.fsync(file.fileno())
        _bring_entries_to_disk(Path(parent))


def _bring_entries_to_disk(folder: Path) -> None:
    if os.name == "nt":  # which knows no descriptors of folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
