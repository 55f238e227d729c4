"""Random damage to files of every kind: a clear message that names the file, or counted samples, and never a hang."""

import itertools

import numpy as np
import pytest

from clip_hf.data.broken_samples import TooManyBrokenSamplesError
from clip_hf.data.sources import open_source
from clip_hf.data.training_pairs import TrainingPairs
from tests.data.source_kinds import write_shard

KINDS = ("tar", "parquet", "jsonl", "csv")


def damage(data: bytes, seed: int) -> bytes:
    """Cuts a file off, or overwrites, removes, repeats or inserts a piece of it."""
    rng = np.random.default_rng(seed)
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 2000))
    piece = data[start : start + length]
    match seed % 6:
        case 0:
            return data[:start]
        case 1:
            return data[:start] + rng.bytes(len(piece)) + data[start + length :]
        case 2:
            return data[:start] + data[start + length :]
        case 3:
            return data[:start] + piece + piece + data[start + length :]
        case 4:
            return data[:start] + bytes(len(piece)) + data[start + length :]
        case _:
            flipped = bytearray(data)
            for place in rng.integers(len(data), size=5):
                flipped[place] ^= 1 << int(rng.integers(8))
            return bytes(flipped)


def read_all(name: str, streaming: bool, processor) -> tuple[int, int]:
    """Numbers of whole and broken samples; errors that are not to be there come through."""
    try:
        source = open_source(name, streaming=streaming)
    except ValueError as error:
        assert "pairs" in str(error), f"the error does not name the file: {error}"
        return 0, 1
    loader = TrainingPairs([source], processor, max_broken_fraction=1).loader(1)
    broken = loader.broken
    try:
        list(loader)
    except TooManyBrokenSamplesError as error:
        assert "pairs" in str(error)
    return broken.num_read[0] - broken.num_broken[0], broken.num_broken[0]


def damage_and_read(kind, seeds, drawn, processor, folder) -> list[tuple[int, int]]:
    whole = write_shard(kind, folder / "whole", drawn).read_bytes()
    counts = []
    for seed, streaming in itertools.product(seeds, (True, False)):
        file = folder / f"pairs-{seed}-{streaming}.{kind}"
        file.write_bytes(damage(whole, seed))
        counts.append(read_all(str(file), streaming, processor))
        file.unlink()
    return counts


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_told_or_counted(kind, drawn, small_processor, tmp_path):
    counts = damage_and_read(kind, range(6), drawn, small_processor, tmp_path)
    assert any(whole > 0 for whole, _ in counts) and any(broken > 0 for _, broken in counts)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_hundreds_of_damages_are_told_or_counted(kind, drawn, small_processor, tmp_path):
    counts = damage_and_read(kind, range(100, 500), drawn, small_processor, tmp_path)
    assert sum(whole > 0 for whole, _ in counts) > 100 and sum(broken > 0 for _, broken in counts) > 100
