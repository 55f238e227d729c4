"""A run that is killed, at any moment and again and again, has the losses of one that was left alone, bit for bit."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from clip_hf import ClipHfTokenizer
from tests.data.source_kinds import Original, write_source
from tests.distributed.run_resume import GLOBAL_BATCH_SIZE

ROOT = Path(__file__).parents[2]
NUM_STEPS = 12  # an epoch has five
NUM_IMAGES = 41
MOST_SECONDS = 240
LAUNCHERS = {
    "single": [sys.executable],
    "ddp": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
}
LAUNCHERS["zero2"] = LAUNCHERS["ddp"]
LAUNCHERS["zero2-alone"] = [*LAUNCHERS["ddp"][:-1], "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    """The same images as a table and as the shards of a stream, one of them broken, and a tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    rng, words = np.random.default_rng(0), ("red", "cat", "on", "a", "mat", "dog", "runs")
    samples = []
    for number in range(NUM_IMAGES):
        path = folder / f"{number:02}.jpg"
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(path)
        captions = [" ".join(rng.choice(words, size=rng.integers(1, 6))) for _ in range(2)]
        samples.append(Original(image_id=path.stem, file=path, captions=captions))
    (folder / "07.jpg").write_bytes(b"no image")
    ClipHfTokenizer.train(words, vocab_size=560, context_length=16).save_pretrained(folder / "tokenizer")
    return {
        "map": write_source("jsonl", folder / "map", samples),
        "stream": write_source("tar", folder / "stream", samples, num_shards=3),
        "tokenizer": str(folder / "tokenizer"),
    }


class Run:
    """A training that can be started, killed with all its children, and read."""

    def __init__(self, folder: Path, engine: str, kind: str, data: dict[str, str], num_workers: int = 2) -> None:
        self.folder, self.engine = folder / "output", engine
        self.options = folder / "options.json"
        options = {
            "output_dir": str(self.folder),
            "engine": engine,
            "num_steps": NUM_STEPS,
            "num_workers": num_workers,
            "tokenizer": data["tokenizer"],
            "source": data[kind],
            "streaming": kind == "stream",
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.options.write_text(json.dumps(options), encoding="utf-8")

    def start(self, engine: str | None = None) -> subprocess.Popen[str]:
        command = [
            *LAUNCHERS[engine or self.engine],
            str(Path(__file__).with_name("run_resume.py")),
            str(self.options),
        ]
        environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with open(self.folder.parent / "stderr", "a", encoding="utf-8") as stderr:
            return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr, text=True)

    def finish(self, engine: str | None = None) -> None:
        process = self.start(engine)
        try:
            code = process.wait(MOST_SECONDS)
        finally:
            kill(process)
        assert code == 0, (self.folder.parent / "stderr").read_text()[-4000:]
        assert (self.folder / "is_complete").exists()

    def samples(self) -> dict[int, list[str]]:
        """Sample ids of each step, of all ranks; of a step that was taken twice, those of the last time."""
        steps: dict[int, dict[str, list[str]]] = {}
        for path in sorted(self.folder.glob("samples_*")):
            for line in path.read_text(encoding="utf-8").splitlines():
                step, *ids = line.split(" ")
                steps.setdefault(int(step), {})[path.name] = ids
        return {step: [id_ for part in parts.values() for id_ in part] for step, parts in steps.items()}

    def losses(self) -> Iterator[tuple[int, str]]:
        for line in (self.folder / "losses").read_text(encoding="utf-8").splitlines():
            step, loss = line.split(" ")
            yield int(step), loss


def kill(process: subprocess.Popen[Any]) -> None:
    """Ends a process and all that it started, at once; ranks have sessions of their own and would outlive torchrun."""
    try:
        root = psutil.Process(process.pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    _, alive = psutil.wait_procs(family[1:], timeout=MOST_SECONDS)
    assert not alive, "what is killed must not write on"


def wait_for(process: subprocess.Popen[Any], is_time: Any) -> bool:
    """Whether a moment came before the process ended."""
    deadline = time.monotonic() + MOST_SECONDS
    while process.poll() is None:
        if is_time():
            return True
        assert time.monotonic() < deadline, "the run hangs"
        time.sleep(0.002)
    return False


def assert_same_losses(run: Run, reference: Run) -> None:
    """Every step that any of the run's processes took is the one of the reference."""
    expected = dict(reference.losses())
    assert list(expected) == list(range(NUM_STEPS)) and len(set(expected.values())) == NUM_STEPS
    found = list(run.losses())
    assert {step for step, _ in found} == set(range(NUM_STEPS))
    for step, loss in found:
        assert loss == expected[step], step
    assert len(list(run.folder.glob("checkpoint-*"))) == 2 and not (run.folder / "_unfinished").exists()


def is_writing(run: Run) -> Any:
    return lambda: any(run.folder.glob("_unfinished/checkpoint-*"))


def has_taken(run: Run, num_steps: int) -> Any:
    losses = run.folder / "losses"
    return lambda: losses.exists() and len(losses.read_text().splitlines()) >= num_steps


@pytest.mark.parametrize("kind", ["map", "stream"])
def test_killed_in_a_step_and_in_a_checkpoint_it_continues(kind, data, tmp_path):
    reference, run = Run(tmp_path / "reference", "single", kind, data), Run(tmp_path / "run", "single", kind, data)
    reference.finish()
    for moment in (has_taken(run, 6), is_writing(run)):
        process = run.start()
        assert wait_for(process, moment)
        kill(process)
    for _ in ("what was left", "nothing"):
        run.finish()
    assert_same_losses(run, reference)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["map", "stream"])
@pytest.mark.parametrize("engine", ["single", "ddp", "zero2"])
def test_killed_again_and_again_it_continues(engine, kind, data, tmp_path):
    """Two moments inside the writing of a checkpoint and two random ones, on each engine and kind of source."""
    reference, run = Run(tmp_path / "reference", engine, kind, data), Run(tmp_path / "run", engine, kind, data)
    started = time.monotonic()
    reference.finish()
    seconds = time.monotonic() - started
    rng = random.Random(f"{engine} {kind}")
    for moment in ("random", "writing", "random", "writing"):
        process = run.start()
        end = time.monotonic() + rng.uniform(0.3, 1) * seconds
        wait_for(process, is_writing(run) if moment == "writing" else lambda end=end: time.monotonic() > end)
        kill(process)
    run.finish()
    assert_same_losses(run, reference)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["single", "ddp", "zero2"])
def test_sigterm_to_the_launcher_saves_between_two_regular_checkpoints(engine, data, tmp_path):
    reference, run = Run(tmp_path / "reference", engine, "map", data), Run(tmp_path / "run", engine, "map", data)
    reference.finish()
    process = run.start()
    assert wait_for(process, has_taken(run, 5))
    process.terminate()
    assert process.wait(MOST_SECONDS) != 0
    num_taken = max(step for step, _ in run.losses()) + 1
    kill(process)
    assert num_taken < NUM_STEPS and (run.folder / f"checkpoint-{num_taken}").exists()
    run.finish()
    assert [step for step, _ in run.losses()] == list(range(NUM_STEPS)), "no step was taken twice"
    assert_same_losses(run, reference)


@pytest.mark.slow
def test_another_number_of_workers_changes_nothing(data, tmp_path):
    reference = Run(tmp_path / "reference", "single", "map", data)
    reference.finish()
    run = Run(tmp_path / "run", "single", "map", data, num_workers=0)
    process = run.start()
    assert wait_for(process, has_taken(run, 7))
    kill(process)
    Run(tmp_path / "run", "single", "map", data, num_workers=1).finish()
    assert_same_losses(run, reference)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["map", "stream"])
@pytest.mark.parametrize(("old", "new"), [("ddp", "single"), ("single", "ddp")])
def test_another_number_of_processes_goes_on_with_what_is_left(old, new, kind, data, tmp_path):
    run = Run(tmp_path, old, kind, data)
    process = run.start()
    assert wait_for(process, has_taken(run, 4))
    kill(process)
    resumed = max(int(path.name.rpartition("-")[2]) for path in run.folder.glob("checkpoint-*"))
    assert 2 <= resumed < 5, "within the first epoch"
    before = {step: ids for step, ids in run.samples().items() if step < resumed}
    for path in run.folder.glob("samples_*"):
        path.unlink()
    run.finish(new)
    steps = before | run.samples()
    assert {step: len(ids) for step, ids in steps.items()} == dict.fromkeys(range(NUM_STEPS), GLOBAL_BATCH_SIZE)
    for epoch in range(2):
        ids = [id_ for step in range(5 * epoch, 5 * epoch + 5) for id_ in steps[step]]
        assert len(ids) - len(set(ids)) <= 1, "a broken sample is replaced by the first of its rank's again"
        assert len(set(ids)) >= NUM_IMAGES - 2


@pytest.mark.slow
def test_zero_with_another_number_of_processes_is_refused(data, tmp_path):
    run = Run(tmp_path, "zero2", "map", data)
    process = run.start()
    assert wait_for(process, lambda: (run.folder / "checkpoint-2").exists())
    kill(process)
    assert run.start("zero2-alone").wait(MOST_SECONDS) != 0
    assert "holds DeepSpeed's state of 2 processes, and there are 1" in (tmp_path / "stderr").read_text()
