import numpy as np
import pytest
import torch
from PIL import Image

from clip_hf import ClipHfImageProcessor, ClipHfProcessor, ClipHfTokenizer
from clip_hf.data.collator import ImageTextCollator, ImageTextPairs

SIZE = 16


@pytest.fixture(scope="module")
def processor() -> ClipHfProcessor:
    tokenizer = ClipHfTokenizer.train(["a cat", "a cat on a mat"] * 4, vocab_size=540, context_length=16)
    return ClipHfProcessor(ClipHfImageProcessor(size=SIZE, crop_size=SIZE), tokenizer)


@pytest.fixture(scope="module")
def examples() -> list[dict]:
    """Wide and tall images of noise, with three captions each."""
    rng = np.random.default_rng(0)
    shapes = [(SIZE, 5 * SIZE, 3), (5 * SIZE, SIZE, 3)]
    images = [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]
    return [{"image": image, "captions": ["a cat", "a dog", "a mat"]} for image in images]


def test_evaluation_cuts_the_centre_and_reads_all_captions(examples, processor):
    pairs = ImageTextPairs(examples, processor, "evaluation")
    pair = pairs[0]
    expected = np.asarray(examples[0]["image"])[:, 2 * SIZE : 3 * SIZE].transpose(2, 0, 1)
    assert pair["pixel_values"].dtype == torch.uint8
    assert np.array_equal(pair["pixel_values"], expected)
    assert (pair["texts"], pair["sample_id"]) == (["a cat", "a dog", "a mat"], "0")
    pairs.set_epoch(1)
    assert torch.equal(pairs[0]["pixel_values"], pair["pixel_values"])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_examples_are_all_found_before_they_are_needed(num_workers, examples, processor):
    broken = [{"image": b"no image", "captions": ["a"]}, {"image": examples[0]["image"], "captions": []}]
    ImageTextPairs(examples, processor, "evaluation").check(num_workers=num_workers)
    pairs = ImageTextPairs([examples[0], broken[0], examples[1], broken[1]], processor, "evaluation")
    state = torch.get_rng_state()
    with pytest.raises(
        ValueError, match=r"^2 of 4 samples .* leave them out of it. 1: .* it is empty .*; 3 has no caption$"
    ):
        pairs.check(num_workers=num_workers)
    assert torch.equal(torch.get_rng_state(), state)
    pairs.check(rank=0, world_size=2, num_workers=num_workers)
    with pytest.raises(ValueError, match=r"^2 of 4 samples"):
        pairs.check(rank=1, world_size=2, num_workers=num_workers)


@pytest.mark.parametrize("index", [0, 1])
def test_training_cuts_any_square_and_reads_any_caption(index, examples, processor):
    pairs = ImageTextPairs(examples, processor, "training", seed=3)
    whole = np.asarray(examples[index]["image"]).transpose(2, 0, 1)
    squares, texts = set(), set()
    for epoch in range(40):
        pairs.set_epoch(epoch)
        pair = pairs[index]
        offsets = [
            start
            for start in range(4 * SIZE + 1)
            if np.array_equal(pair["pixel_values"], whole.take(range(start, start + SIZE), axis=2 - index))
        ]
        squares.update(offsets)
        texts.update(pair["texts"])
        assert len(pair["texts"]) == 1
    assert len(squares) > 15 and min(squares) < 10 and max(squares) > 4 * SIZE - 10
    assert texts == {"a cat", "a dog", "a mat"}


def test_crops_depend_on_seed_epoch_and_index_alone(examples, processor):
    def crop(seed: int, epoch: int, index: int) -> list:
        pairs = ImageTextPairs(examples * 2, processor, "training", seed)
        pairs.set_epoch(epoch)
        return pairs[index]["pixel_values"].tolist()

    assert crop(0, 0, 0) == crop(0, 0, 0)
    assert len({str(crop(*place)) for place in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 2)]}) == 4


def test_files_are_decoded_and_named(tmp_path, examples, processor):
    path = tmp_path / "wide.png"
    examples[0]["image"].save(path)
    file = [{"image": {"path": str(path), "bytes": None}, "text": "a cat"}]
    data = [{"image": {"path": None, "bytes": path.read_bytes()}, "text": "a cat"}]
    (from_file,), (from_bytes,) = (list(iterate(ImageTextPairs(e, processor, "evaluation"))) for e in (file, data))
    assert torch.equal(from_file["pixel_values"], from_bytes["pixel_values"])
    assert (from_file["sample_id"], from_bytes["sample_id"]) == (str(path), "0")


def iterate(pairs: ImageTextPairs):
    return (pairs[index] for index in range(len(pairs)))


def test_a_batch_is_padded_to_its_longest_text(processor):
    pixels = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    texts = ["a cat", "a cat on a mat", "a cat " * 40]
    pairs = [{"pixel_values": pixels, "texts": [text], "sample_id": text} for text in texts]
    batch = ImageTextCollator(processor)(pairs[:2])
    assert batch["input_ids"].tolist() == processor.tokenizer(texts[:2], padding=True)["input_ids"]
    assert batch["pixel_values"].shape == (2, 3, SIZE, SIZE) and batch["pixel_values"].dtype == torch.uint8
    assert batch["sample_ids"] == texts[:2]
    assert ImageTextCollator(processor)(pairs)["input_ids"].shape == (3, 16), "longer texts are cut"


def test_a_batch_has_all_texts_of_its_images_in_their_order(examples, processor):
    pairs = ImageTextPairs([examples[0], examples[1] | {"captions": ["a mat"]}], processor, "evaluation")
    batch = ImageTextCollator(processor)([pairs[0], pairs[1]])
    assert batch["num_texts"].tolist() == [3, 1] and len(batch["pixel_values"]) == 2
    expected = processor.tokenizer(["a cat", "a dog", "a mat", "a mat"], padding=True)["input_ids"]
    assert batch["input_ids"].tolist() == expected
