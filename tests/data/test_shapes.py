"""Captioned shapes: the split that nobody can read off single words, and images that show what captions say."""

import colorsys
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from clip_hf.data.columns import Columns
from clip_hf.data.shapes import (
    CHANCE,
    COLOURS,
    COMBINATIONS,
    POSITIONS,
    SEEN,
    SHAPES,
    SIZES,
    UNSEEN,
    ZERO_SHOT_TEMPLATES,
    ShapesDataset,
    accuracy,
    draw_image,
)
from clip_hf.data.sources import open_source


def words(combinations):
    text = " ".join(caption for combination in combinations for caption in combination.captions)
    return set(text.replace(",", "").split())


def without_ground(combination, image_size=64):
    """Where an image differs from another on the same ground: the pixels (H, W) of the shape, and the image."""
    others = [c for c in COMBINATIONS if c[1:] == combination[1:] and c.colour != combination.colour]
    image, other = (
        np.asarray(draw_image(c, np.random.default_rng(3), image_size), dtype=float) for c in (combination, others[0])
    )
    return np.abs(image - other).max(axis=-1) > 30, image


# The split


def test_every_combination_is_seen_or_unseen():
    assert len(COMBINATIONS) == len(set(COMBINATIONS)) == len(COLOURS) * len(SHAPES) * len(SIZES) * len(POSITIONS)
    assert len(COMBINATIONS) >= 200
    assert set(SEEN) | set(UNSEEN) == set(COMBINATIONS)
    assert not set(SEEN) & set(UNSEEN)
    assert len(UNSEEN) / len(COMBINATIONS) == 0.25


def test_a_colour_and_shape_are_never_seen_together_where_they_are_unseen():
    seen, unseen = ({(c.colour, c.shape) for c in split} for split in (SEEN, UNSEEN))
    assert ("red", "circle") in unseen
    assert not seen & unseen


def test_training_shows_every_word_in_every_other_company():
    assert words(SEEN) == words(COMBINATIONS)
    with_colour, with_shape = (Counter(key) for key in zip(*{(c.colour, c.shape) for c in SEEN}, strict=True))
    assert set(with_colour) == set(COLOURS) and min(with_colour.values()) >= 4
    assert set(with_shape) == set(SHAPES) and min(with_shape.values()) >= 6
    for combination in UNSEEN:  # size and position say nothing of the split
        assert all(combination._replace(size=s, position=p) in UNSEEN for s in SIZES for p in POSITIONS)


# The texts


def test_a_caption_names_one_combination():
    captions = [caption for combination in COMBINATIONS for caption in combination.captions]
    assert len(captions) == len(set(captions))
    for combination in COMBINATIONS:
        for caption in combination.captions:
            assert all(part in caption for part in combination)


def test_class_names_in_their_templates_are_captions():
    assert len({combination.name for combination in COMBINATIONS}) == len(COMBINATIONS)
    for combination in COMBINATIONS:
        assert {template.format(combination.name) for template in ZERO_SHOT_TEMPLATES} < set(combination.captions)


# The images


@pytest.mark.parametrize("colour", COLOURS)
def test_the_shape_has_its_colour(colour):
    (combination,) = (c for c in COMBINATIONS if c == (colour, "square", "large", "middle"))
    pixels, image = without_ground(combination)
    hue, saturation, _ = colorsys.rgb_to_hsv(*np.median(image[pixels], axis=0) / 255)
    if colour == "white":
        assert saturation < 0.1
    else:
        nearest = min(set(COLOURS) - {"white"}, key=lambda name: abs((hue * 360 - COLOURS[name][0] + 180) % 360 - 180))
        assert nearest == colour


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_shape_stands_in_its_place_and_has_its_size(shape, position):
    areas = {}
    for size in SIZES:
        (combination,) = (c for c in COMBINATIONS if c == ("green", shape, size, position))
        pixels, _ = without_ground(combination)
        y, x = (coordinate.mean() / 64 for coordinate in pixels.nonzero())
        nearest = min(POSITIONS, key=lambda name: np.hypot(x - POSITIONS[name][0], y - POSITIONS[name][1]))
        assert nearest == position
        assert not (pixels[0].any() or pixels[-1].any() or pixels[:, 0].any() or pixels[:, -1].any())
        areas[size] = pixels.sum()
    assert 2 < areas["large"] / areas["small"] < 6


def test_shapes_differ_by_more_than_their_angle():
    """At one angle or another, no two outlines share nine tenths of their area."""

    def outline(shape, seed):
        combination = next(c for c in COMBINATIONS if c == ("green", shape, "large", "middle"))
        rng = np.random.default_rng(seed)
        first = next(c for c in COMBINATIONS if c == ("red", shape, "large", "middle"))
        state = rng.bit_generator.state
        image = np.asarray(draw_image(combination, rng), dtype=float)
        rng.bit_generator.state = state
        return np.abs(image - np.asarray(draw_image(first, rng), dtype=float)).max(axis=-1) > 30

    names = list(SHAPES)
    for seed in range(5):
        outlines = [outline(name, seed) for name in names]
        for i, one in enumerate(outlines):
            for other in outlines[:i]:
                assert (one & other).sum() / (one | other).sum() < 0.9


# The data set


def test_an_example_depends_on_seed_and_index_alone():
    examples, again = ShapesDataset(seed=5), ShapesDataset(seed=5, num_examples=1000)
    last = examples[300]
    for index in (300, 0, 17):
        assert again[index]["text"] == examples[index]["text"]
        assert again[index]["image"].tobytes() == examples[index]["image"].tobytes()
    assert again[300]["image"].tobytes() == last["image"].tobytes()
    code = "from clip_hf.data.shapes import *; print(sum(ShapesDataset(seed=5)[300]['image'].tobytes()))"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(elsewhere.stdout) == sum(last["image"].tobytes())


def test_another_seed_gives_other_images_in_another_order():
    first, second = ShapesDataset(seed=0), ShapesDataset(seed=1)
    assert [first.combination(i) for i in range(20)] != [second.combination(i) for i in range(20)]
    assert (
        len({first[i]["image"].tobytes() for i in range(40)} | {second[i]["image"].tobytes() for i in range(40)}) == 80
    )


def test_an_example_is_a_image_and_one_of_its_captions():
    examples = ShapesDataset(UNSEEN, image_size=32)
    phrasings = set()
    for index in range(len(examples)):
        example = examples[index]
        assert example["image"].size == (32, 32) and example["image"].mode == "RGB"
        phrasings.add(examples.combination(index).captions.index(example["text"]))
    assert phrasings == {0, 1, 2, 3}


def test_each_round_has_every_combination_once():
    examples = ShapesDataset(SEEN, num_examples=3 * len(SEEN))
    rounds = [[examples.combination(turn * len(SEEN) + place) for place in range(len(SEEN))] for turn in range(3)]
    assert all(sorted(combinations) == sorted(SEEN) for combinations in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    assert examples[0]["image"].tobytes() != examples[rounds[1].index(rounds[0][0]) + len(SEEN)]["image"].tobytes()


def test_it_serves_as_a_torch_data_set():
    examples = ShapesDataset(num_examples=30)
    assert len(examples) == 30 and len(list(examples)) == 30
    texts = [[example["text"] for example in batch] for batch in DataLoader(examples, batch_size=8, collate_fn=list)]
    assert [text for batch in texts for text in batch] == [examples[i]["text"] for i in range(30)]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="combinations is empty: pass SEEN"):
        ShapesDataset([])
    with pytest.raises(ValueError, match="num_examples is 0, but must be at least 1"):
        ShapesDataset(num_examples=0)
    with pytest.raises(ValueError, match=r"image_size is 8, but .* below 16 pixels"):
        ShapesDataset(image_size=8)
    for index in (-1, 480):
        with pytest.raises(IndexError, match=rf"index {index} is not in \[0, 480\)"):
            ShapesDataset()[index]


def test_accuracy_counts_names_and_their_parts():
    first, second = COMBINATIONS[0], COMBINATIONS[1]  # they differ in position alone
    others = list(COMBINATIONS[2:6])
    found = accuracy([[first, second, *others], [second, first, *others], [*others, second, first]], [first] * 3)
    assert found["top-1"] == pytest.approx(1 / 3)
    assert found["top-5"] == pytest.approx(2 / 3)
    assert found["position"] == pytest.approx(
        sum(one[0].position == first.position for one in ([first], [second], others)) / 3
    )
    assert found["colour"] == 1
    assert CHANCE["top-5"] == 5 / 480
    assert CHANCE["shape"] == 1 / 6


def test_a_folder_of_them_is_a_labelled_source(tmp_path):
    examples = ShapesDataset(UNSEEN, num_examples=5, image_size=32)
    examples.write(tmp_path / "images", range(1, 4))
    shown = [examples.combination(index) for index in range(1, 4)]
    labels = [[f"{one.colour} {one.shape}"] for one in shown]
    for column, texts in {"captions": [one.captions for one in shown], "label_name": labels}.items():
        source = open_source(tmp_path / "images", Columns(text=column))
        assert [source[row]["captions"] for row in range(3)] == texts
    with Image.open(source[0]["image"]) as image:
        assert image.tobytes() == examples[1]["image"].tobytes()
