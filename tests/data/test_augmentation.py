import colorsys
import io
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from PIL.JpegImagePlugin import JpegImageFile

from clip_hf import ClipHfImageProcessor, ClipHfProcessor
from clip_hf.data.augmentation import (
    Augmentation,
    jitter_colours,
    random_box,
    random_square,
    training_pixels,
    turn_hue,
)
from clip_hf.data.collator import ImageTextPairs
from clip_hf.model.image_decoding_clip_hf import ImageDecodingError

SIZE = 32


@pytest.fixture(scope="module")
def image_processor() -> ClipHfImageProcessor:
    return ClipHfImageProcessor(size=SIZE, crop_size=SIZE)


def noise(height, width, seed=0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def as_image(pixels) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def is_close(pixels, expected) -> bool:
    """Whether bytes are at most 1 apart, and nearly all equal."""
    difference = np.abs(np.asarray(pixels).astype(int) - np.asarray(expected).astype(int))
    return difference.max() <= 1 and difference.mean() < 0.02


def prepared(image, image_processor, seed=0, **options):
    return training_pixels(image, "it", image_processor, Augmentation(**options), random.Random(seed))


def test_by_default_a_random_square_of_the_resized_image_is_cut_out(image_processor):
    """Within 1/255 of Pillow's resize of the whole image and a crop, unless the image is decoded at a reduced size."""
    image = noise(50, 100)
    resized = np.asarray(image.resize((64, SIZE), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    lefts = set()
    for seed in range(100):
        pixels = prepared(image, image_processor, seed)
        assert pixels.dtype == torch.uint8 and pixels.is_contiguous()
        lefts.update(left for left in range(33) if is_close(pixels, resized[:, :, left : left + SIZE]))
    assert len(lefts) > 25 and {0, 32} <= lefts


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_a_resized_image_differs_little_from_pillows_whatever_its_shape(resample):
    """Noise and soft gradients, hardly larger than the crop, smaller, tall and wide."""
    processor, whole_area = ClipHfImageProcessor(size=SIZE, crop_size=SIZE, resample=resample), (1.0, 1.0)
    for height, width in ((SIZE, SIZE), (33, 44), (40, 36), (20, 27), (120, 40), (40, 120)):
        for image in (noise(height, width), noise(6, 8).resize((width, height), Image.Resampling.BICUBIC)):
            crop = image.crop(random_box(image.size, whole_area, random.Random(0)))
            pillows = np.asarray(crop.resize((SIZE, SIZE), resample)).transpose(2, 0, 1).astype(int)
            differences = np.abs(prepared(image, processor, crop_scale=whole_area).numpy().astype(int) - pillows)
            assert differences.max() <= (8 if height > width else 2), (height, width)
            assert differences.mean() < (0.4 if height > width else 0.1), (height, width)


@pytest.fixture(scope="module")
def large_photo(tmp_path_factory) -> bytes:
    """A smooth image with some sharp edges, 1600x1200, as a JPEG file."""
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    image = rough.resize((1600, 1200), Image.Resampling.BICUBIC)
    image.paste(rough.resize((400, 300), Image.Resampling.NEAREST), (600, 500))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def whole(file: bytes) -> Image.Image:
    with Image.open(io.BytesIO(file)) as image:
        image.load()
        return image.copy()


def test_large_photos_are_decoded_small_and_differ_little(large_photo, image_processor, monkeypatch):
    """By less than 1/255 in the mean, 12/255 at sharp edges, from the same crop of the whole photo."""
    sizes = []
    draft = JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda self, *args: (draft(self, *args), sizes.append(self.size))[0])
    small = prepared(large_photo, image_processor).int()
    assert sizes == [(200, 150)], "an eighth, as small as JPEG can be decoded"
    exact = np.asarray(whole(large_photo).resize((42, SIZE), Image.Resampling.BICUBIC)).transpose(2, 0, 1).astype(int)
    differences = [np.abs(small.numpy() - exact[:, :, left : left + SIZE]) for left in range(11)]
    nearest = min(differences, key=np.mean)
    assert 0 < nearest.mean() < 1 and nearest.max() <= 12


def test_evaluation_decodes_large_photos_whole(large_photo, image_processor, small_processor):
    processor = ClipHfProcessor(image_processor, small_processor.tokenizer)
    pairs = ImageTextPairs([{"image": large_photo, "text": "a"}], processor, "evaluation")
    exact = whole(large_photo).resize((42, SIZE), Image.Resampling.BICUBIC).crop((5, 0, 5 + SIZE, SIZE))
    assert np.array_equal(as_image(pairs[0]["pixel_values"]), exact)


def test_random_square_reaches_every_corner():
    rng = random.Random(0)
    squares = {random_square((4, 3), 2, rng) for _ in range(100)}
    assert squares == {(left, top, left + 2, top + 2) for left in (0, 1, 2) for top in (0, 1)}


def test_flips_mirror_the_crop(image_processor):
    image = noise(SIZE, SIZE)
    assert torch.equal(prepared(image, image_processor, flip_probability=1), prepared(image, image_processor).flip(-1))
    flipped = [
        not torch.equal(prepared(image, image_processor, seed, flip_probability=0.5), prepared(image, image_processor))
        for seed in range(100)
    ]
    assert 30 < sum(flipped) < 70


def test_grayscale_leaves_pillows_luminance(image_processor):
    image = noise(SIZE, SIZE)
    gray = prepared(image, image_processor, grayscale_probability=1)
    assert np.array_equal(as_image(gray), image.convert("L").convert("RGB"))


def test_a_crop_keeps_a_share_of_the_area(image_processor):
    rng = random.Random(0)
    shares, ratios, corners = [], [], set()
    for _ in range(500):
        left, top, right, bottom = random_box((120, 90), (0.2, 0.6), rng)
        assert 0 <= left < right <= 120 and 0 <= top < bottom <= 90
        shares.append((right - left) * (bottom - top) / (120 * 90))
        ratios.append((right - left) / (bottom - top))
        corners.add((left, top))
    assert 0.19 < min(shares) < 0.23 and 0.57 < max(shares) < 0.61 and 0.37 < np.mean(shares) < 0.43
    assert 0.72 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.37 and len(corners) > 300


@pytest.mark.parametrize("size", [(1000, 3), (3, 1000), (1, 1)])
def test_a_crop_of_a_very_long_image_is_its_centre(size):
    left, top, right, bottom = random_box(size, (0.9, 1), random.Random(0))
    assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
    assert abs((left + right) - size[0]) <= 1 and abs((top + bottom) - size[1]) <= 1


def test_a_random_resized_crop_is_resized_to_the_image_size(image_processor):
    image = noise(50, 100)
    pixels = prepared(image, image_processor, crop_scale=(0.3, 0.5))
    box = random_box((100, 50), (0.3, 0.5), random.Random(0))
    assert is_close(as_image(pixels), image.crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    assert prepared(image, image_processor, crop_scale=(1, 1)).shape == (3, SIZE, SIZE)


def test_a_crop_of_a_large_photo_is_not_enlarged(large_photo, image_processor):
    """Decoded at no less than a crop of the smallest share needs: it is as sharp as that of the whole photo."""
    photo = whole(large_photo)
    exact = photo.resize((SIZE, SIZE), Image.Resampling.BICUBIC, random_box(photo.size, (0.1, 0.1), random.Random(0)))
    small = prepared(large_photo, image_processor, crop_scale=(0.1, 0.1)).numpy().astype(int)
    difference = np.abs(small - np.asarray(exact).transpose(2, 0, 1))
    assert 0 < difference.mean() < 4, "boxes are of whole pixels, at either size"


def test_jitter_is_pillows(image_processor):
    image = noise(20, 20)
    rng = random.Random(4)
    order, expected = rng.sample(range(4), 4), image
    for number in order:
        if number == 3:
            expected = turn_hue(expected, rng.uniform(-0.1, 0.1))
        else:
            enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[number]
            expected = enhancer(expected).enhance(rng.uniform(0.6, 1.4))
    assert np.array_equal(jitter_colours(image, (0.4, 0.4, 0.4, 0.1), random.Random(4)), expected)
    changed = prepared(noise(SIZE, SIZE), image_processor, jitter_probability=1)
    assert not torch.equal(changed, prepared(noise(SIZE, SIZE), image_processor))


@pytest.mark.parametrize("turns", [-0.5, -0.2, 0, 1 / 3])
def test_hue_is_turned_as_colorsys_turns_it(turns):
    image = noise(30, 30)
    turned = np.asarray(turn_hue(image, turns)).reshape(-1, 3)
    for rgb, found in zip(np.asarray(image).reshape(-1, 3), turned, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(rgb / 255))
        expected = 255 * np.array(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value))
        assert np.abs(expected - found).max() < 13, "Pillow rounds hue and saturation to bytes"


def test_a_broken_image_is_named(image_processor):
    with pytest.raises(ImageDecodingError, match="it: it is empty or of no image format"):
        prepared(b"nothing", image_processor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_scale": (0, 1)}, "crop_scale is"),
        ({"crop_scale": (0.5, 0.4)}, "crop_scale is"),
        ({"flip_probability": 2}, "flip_probability is 2, but must be between 0 and 1"),
        ({"jitter": (0.4, 0.4)}, "jitter is"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "hue to 0.5"),
        ({"grayscale_probability": -1}, "grayscale_probability is -1"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)
