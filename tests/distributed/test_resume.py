"""A run that is killed, at any moment and again and again, has the losses of one that was left alone, bit for bit."""

import contextlib
import itertools
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from clip_hf import ClipHfTokenizer
from tests.data.source_kinds import Original, write_source
from tests.distributed.run_resume import GLOBAL_BATCH_SIZE
from tests.ranks import launched_environment

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
        "parquet stream": write_source("parquet", folder / "parquet", samples, num_shards=3),
        "tokenizer": str(folder / "tokenizer"),
    }


class Run:
    """A training that can be started, killed with all its children, and read."""

    def __init__(
        self,
        folder: Path,
        engine: str,
        kind: str,
        data: dict[str, str],
        num_workers: int = 2,
        num_epochs: float | None = None,
    ) -> None:
        self.folder, self.engine = folder / "output", engine
        self.options = folder / "options.json"
        options = {
            "output_dir": str(self.folder),
            "engine": engine,
            "num_steps": NUM_STEPS,
            "num_epochs": num_epochs,
            "num_workers": num_workers,
            "tokenizer": data["tokenizer"],
            "source": data[kind],
            "streaming": "stream" in kind,
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.options.write_text(json.dumps(options), encoding="utf-8")

    def start(self, engine: str | None = None, launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
        command = [*(launcher or LAUNCHERS[engine or self.engine]), str(Path(__file__).with_name("run_resume.py"))]
        return start([*command, str(self.options)], self.folder.parent / "stderr")

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


def start(command: Sequence[str], stderr_file: Path) -> subprocess.Popen[str]:
    environment = launched_environment()
    with open(stderr_file, "a", encoding="utf-8") as stderr:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr, text=True)


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


def kill_in(process: subprocess.Popen[Any], is_time: Any) -> None:
    """Kills a run inside a moment: it is held first, and let go on if the moment is over by then."""
    while wait_for(process, is_time):
        root = psutil.Process(process.pid)
        family = [root, *root.children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.suspend()
        if is_time():
            kill(process)
            return
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.resume()
    pytest.fail(f"the run ended before it was killed, with code {process.returncode}")


def assert_same_losses(run: Run, reference: Run) -> None:
    """Every step that any of the run's processes took is the one of the reference."""
    expected = dict(reference.losses())
    assert list(expected) == list(range(NUM_STEPS)) and len(set(expected.values())) == NUM_STEPS
    found = list(run.losses())
    assert {step for step, _ in found} == set(range(NUM_STEPS))
    for step, loss in found:
        assert loss == expected[step], step
    assert len(list(run.folder.glob("checkpoint-*"))) == 2 and not (run.folder / "_unfinished").exists()


def after(event: Callable[[], bool], seconds: float) -> Callable[[], bool]:
    """Whether so many seconds are over since something was first seen."""
    since: list[float] = []

    def is_time() -> bool:
        if not since and event():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() >= since[0] + seconds

    return is_time


def is_writing(folder: Path) -> Callable[[], bool]:
    return lambda: any(folder.glob("_unfinished/checkpoint-*"))


def has_taken(run: Run, num_steps: int) -> Callable[[], bool]:
    """Whether so many steps were taken, those that were taken again among them."""
    losses = run.folder / "losses"
    return lambda: losses.exists() and len(losses.read_text().splitlines()) >= num_steps


@pytest.mark.parametrize(("kind", "num_epochs"), [("map", None), ("stream", 2.4)])
def test_killed_in_a_step_and_in_a_checkpoint_it_continues(kind, num_epochs, data, tmp_path):
    options = {"engine": "single", "kind": kind, "data": data, "num_epochs": num_epochs}
    reference, run = Run(tmp_path / "reference", **options), Run(tmp_path / "run", **options)
    reference.finish()
    for moment in (has_taken(run, 6), is_writing(run.folder)):
        kill_in(run.start(), moment)
    for _ in ("what was left", "nothing"):
        run.finish()
    assert_same_losses(run, reference)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("engine", "kind"),
    [*itertools.product(("single", "ddp", "zero2"), ("map", "stream")), ("single", "parquet stream")],
)
def test_killed_again_and_again_it_continues(engine, kind, data, tmp_path):
    """Two random moments in training and two in the writing of a checkpoint, on each engine and kind of source."""
    reference, run = Run(tmp_path / "reference", engine, kind, data), Run(tmp_path / "run", engine, kind, data)
    reference.finish()
    rng = random.Random(f"{engine} {kind}")
    for moment in ("random", "writing", "random", "writing"):
        num_taken = len(list(run.losses())) if (run.folder / "losses").exists() else 0
        training = after(has_taken(run, num_taken + rng.randint(1, 2)), rng.uniform(0, 0.1))
        is_inside = is_writing(run.folder)
        later = after(is_inside, rng.uniform(0, 0.02))
        writing = lambda later=later, is_inside=is_inside: later() and is_inside()  # noqa: E731, one of two moments
        kill_in(run.start(), writing if moment == "writing" else training)
    run.finish()
    assert_same_losses(run, reference)


@pytest.mark.slow
def test_the_script_is_killed_in_its_tokenizer_in_a_checkpoint_and_at_its_end(data, tmp_path):
    def begin(folder: Path) -> subprocess.Popen[str]:
        options = "--eval_strategy no --global_batch_size 8 --max_steps 6 --save_steps 2 --dataloader_num_workers 1"
        options += f" --vocab_size 540 --train_data {data['map']} --output_dir {folder} --resume_from_checkpoint true"
        recipe, script = "scripts/recipes/shapes.yaml", "scripts/train.py"
        command = [sys.executable, str(ROOT / script), str(ROOT / recipe), *options.split()]
        return start(command, tmp_path / "stderr")

    def finish(folder: Path) -> dict[str, torch.Tensor]:
        code = begin(folder).wait(MOST_SECONDS)
        assert code == 0, (tmp_path / "stderr").read_text()[-4000:]
        return load_file(folder / "model.safetensors")

    expected, run = finish(tmp_path / "reference"), tmp_path / "run"
    tokenizers = (run / "_unfinished" / "tokenizer", run / "tokenizer")
    for moment in (
        lambda: any(tokenizer.exists() for tokenizer in tokenizers),
        is_writing(run),
        (run / "model.safetensors").exists,
    ):
        kill_in(begin(run), moment)
    found = finish(run)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.slow
def test_two_nodes_take_the_steps_of_two_processes_of_one(data, tmp_path):
    reference, run = Run(tmp_path / "reference", "ddp", "map", data), Run(tmp_path / "run", "ddp", "map", data)
    reference.finish()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    options = f"--nnodes 2 --nproc_per_node 1 --rdzv_backend c10d --rdzv_endpoint {endpoint} --local_addr 127.0.0.1"
    launcher = [sys.executable, "-m", "torch.distributed.run", *options.split()]
    agents = [run.start(launcher=launcher) for _ in range(2)]
    try:
        assert [agent.wait(MOST_SECONDS) for agent in agents] == [0, 0], (tmp_path / "run" / "stderr").read_text()[
            -4000:
        ]
    finally:
        for agent in agents:
            kill(agent)
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
