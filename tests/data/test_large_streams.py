"""A stream of a million samples: what it takes to open, to enter and to read."""

import io
import os
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image

from clip_hf.data.sources import open_source
from clip_hf.data.training_pairs import TrainingPairs

NUM_SHARDS, SHARD_SIZE = 100, 10_000


@pytest.fixture(scope="module")
def million(tmp_path_factory) -> str:
    """100 shards of 10,000 tiny images: names of one file."""
    folder = tmp_path_factory.mktemp("million")
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "PNG")
    with tarfile.open(folder / "shard.tar", "w") as archive:
        for number in range(SHARD_SIZE):
            for ending, data in (("png", buffer.getvalue()), ("txt", b"a red square")):
                member = tarfile.TarInfo(f"{number:06}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    for number in range(NUM_SHARDS):
        os.link(folder / "shard.tar", folder / f"{number:03}.tar")
    return f"{folder}/{{000..{NUM_SHARDS - 1:03}}}.tar"


def megabytes() -> float:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
def test_memory_stays_flat_and_any_place_is_entered_in_seconds(million, small_processor):
    before = megabytes()
    start = time.perf_counter()
    source = open_source(million, streaming=True)
    opening = time.perf_counter() - start
    assert len(source) == NUM_SHARDS * SHARD_SIZE
    pairs = TrainingPairs([source], small_processor)
    loader = pairs.loader(64)
    for _, _ in zip(loader, range(200), strict=False):
        pass
    early = megabytes()
    state = loader.state_dict()
    entering = []
    for share in (0.3, 0.6, 0.9):
        turn = int(share * len(pairs)) // 64 * 64
        later = TrainingPairs([source], small_processor).loader(64)
        start = time.perf_counter()
        later.load_state_dict([state | {"turn": turn, "num_since": turn}])
        batches = iter(later)
        next(batches)
        entering.append(time.perf_counter() - start)
        for _, _ in zip(batches, range(200), strict=False):
            pass
    assert opening < 120 and max(entering) < 20
    assert early - before < 100 and megabytes() - early < 10
