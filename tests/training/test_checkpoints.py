import os
import shutil

import pytest

from clip_hf.training.checkpoints import (
    UNFINISHED,
    checkpoint_to_resume,
    discard_oldest,
    is_resuming,
    publish,
    publish_files,
    settle,
)


def write(folder, content="new"):
    (folder / "inner").mkdir(parents=True)
    names = ("inner/weights", "trainer_state.json", "optimizer.pt", "scheduler.pt")
    for path in (folder / name for name in names):
        path.write_text(content)
    return folder


def read(folder):
    return (folder / "inner" / "weights").read_text()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("is_there_one_already", [False, True])
def test_a_published_checkpoint_is_whole_and_alone(is_there_one_already, tmp_path):
    if is_there_one_already:
        write(tmp_path / "checkpoint-7", "old")
    assert publish(write(tmp_path / UNFINISHED / "checkpoint-7"), tmp_path) == tmp_path / "checkpoint-7"
    assert read(tmp_path / "checkpoint-7") == "new"
    assert names(tmp_path) == ["checkpoint-7"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("num_calls", range(9))
def test_killed_at_any_call_there_is_a_whole_checkpoint(num_calls, tmp_path, monkeypatch):
    """Every renaming and deletion is a moment; whichever is the last, what is left can be settled and resumed from."""
    write(tmp_path / "checkpoint-7", "old")
    unfinished = write(tmp_path / UNFINISHED / "checkpoint-7")
    calls = []

    def dying(call):
        def wrapper(path, *args, **kwargs):
            if len(calls) == num_calls:
                if call is rmtree:
                    (path / "trainer_state.json").unlink(missing_ok=True)  # it gets half way
                raise Killed
            calls.append(call)
            return call(path, *args, **kwargs)

        return wrapper

    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", dying(rmtree))
    monkeypatch.setattr(type(tmp_path), "rename", dying(type(tmp_path).rename))
    try:
        publish(unfinished, tmp_path)
    except Killed:
        assert len(calls) < 4
    monkeypatch.undo()
    settle(tmp_path)
    assert read(tmp_path / "checkpoint-7") == ("old" if num_calls == 0 else "new")
    assert names(tmp_path) == ["checkpoint-7"]
    assert checkpoint_to_resume(True, tmp_path) == str(tmp_path / "checkpoint-7")


def test_the_oldest_go_and_the_best_and_the_newest_stay(tmp_path):
    for age, step in enumerate((40, 10, 20, 30)):  # 40 is left of an older run
        checkpoint = write(tmp_path / f"checkpoint-{step}")
        os.utime(checkpoint, (1000 + age, 1000 + age))
    discard_oldest(tmp_path, None, [])
    assert len(names(tmp_path)) == 4
    discard_oldest(tmp_path, 3, [str(tmp_path / "checkpoint-40"), None])
    assert set(names(tmp_path)) == {"checkpoint-40", "checkpoint-20", "checkpoint-30"}
    discard_oldest(tmp_path, 1, [str(tmp_path / "checkpoint-40")])
    assert names(tmp_path) == ["checkpoint-30", "checkpoint-40"]


def test_where_a_run_begins(tmp_path, caplog):
    for nothing in (None, False, "false"):
        assert checkpoint_to_resume(nothing, tmp_path) is None
    assert checkpoint_to_resume("true", tmp_path / "missing") is None
    write(tmp_path / UNFINISHED / "checkpoint-9")
    assert checkpoint_to_resume(True, tmp_path) is None
    for step in (2, 10):
        write(tmp_path / f"checkpoint-{step}")
    assert checkpoint_to_resume("True", tmp_path) == str(tmp_path / "checkpoint-10")
    assert checkpoint_to_resume(str(tmp_path / "checkpoint-10"), tmp_path) == str(tmp_path / "checkpoint-10")
    assert checkpoint_to_resume(str(tmp_path / "checkpoint-2"), tmp_path / "new") == str(tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match="checkpoints that do not come from it, such as checkpoint-10"):
        checkpoint_to_resume(str(tmp_path / "checkpoint-2"), tmp_path)
    with pytest.raises(ValueError, match=r"no trainer_state.json.*checkpoint-10"):
        checkpoint_to_resume(str(tmp_path / "checkpoint-3"), tmp_path)


@pytest.mark.parametrize("missing", ["optimizer.pt", "scheduler.pt"])
def test_weights_alone_are_not_continued(missing, tmp_path):
    checkpoint = write(tmp_path / "checkpoint-2")
    (checkpoint / missing).unlink()
    for resume_from in ("true", str(checkpoint)):
        with pytest.raises(ValueError, match=r"checkpoint-2 has no optimizer and schedule, .* --model .*checkpoint-2"):
            checkpoint_to_resume(resume_from, tmp_path)


def test_whether_a_run_continues_another():
    assert not any(map(is_resuming, (None, False, "false")))
    assert all(map(is_resuming, (True, "true", "a/folder")))


def test_published_files_take_the_place_of_older_ones_and_leave_others(tmp_path):
    write(tmp_path / UNFINISHED / "model"), write(tmp_path / "run", "old")
    (tmp_path / "run" / "results.json").write_text("results")
    publish_files(tmp_path / UNFINISHED / "model", tmp_path / "run")
    assert read(tmp_path / "run") == "new" and (tmp_path / "run" / "results.json").read_text() == "results"
    assert not (tmp_path / UNFINISHED / "model").exists()
