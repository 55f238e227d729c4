"""Fixtures of the tests of data: a processor, small photographs drawn here, and real ones."""

import numpy as np
import pytest
from PIL import Image

from clip_hf import ClipHfImageProcessor, ClipHfProcessor, ClipHfTokenizer
from tests.data.source_kinds import Original, originals

SIZE = 16
WORDS = ("a", "red", "blue", "cat", "dog", "on", "mat", "field", "runs", "sits", "the")


@pytest.fixture(scope="session")
def small_processor() -> ClipHfProcessor:
    """A processor for 16 pixels and 16 tokens."""
    tokenizer = ClipHfTokenizer.train([" ".join(WORDS)] * 4, vocab_size=560, context_length=16)
    return ClipHfProcessor(ClipHfImageProcessor(size=SIZE, crop_size=SIZE), tokenizer)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> list[Original]:
    """40 small JPEG files of noise, with two or three captions each."""
    folder = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(0)
    samples = []
    for number in range(40):
        height, width = rng.integers(16, 40, 2)
        file = folder / f"{number:02}.jpg"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file)
        captions = [f"{' '.join(rng.choice(WORDS, 5))} {number}" for _ in range(2 + number % 2)]
        samples.append(Original(image_id=f"{number:02}", file=file, captions=captions))
    return samples


@pytest.fixture(scope="session")
def real(test_data) -> list[Original]:
    """200 photographs with five captions each."""
    return originals(test_data / "flickr8k" / "train", 200)
