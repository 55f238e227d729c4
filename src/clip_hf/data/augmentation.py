"""What happens to an image on its way into training: decoded small, cropped at random, and changed if asked for.

Shapes: S image size in pixels.
"""

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor

from clip_hf.model.image_decoding_clip_hf import ImageSource, decode_image
from clip_hf.model.image_processing_clip_hf import ClipHfImageProcessorTorch
from clip_hf.model.image_sizes_clip_hf import resized_size

_RATIOS = (3 / 4, 4 / 3)
_NUM_CROP_ATTEMPTS = 10


class _TrainingResizer(ClipHfImageProcessorTorch):
    """Leaves nothing to Pillow for its rounding: decoding at a reduced size changes more."""

    def _leaves_to_pillow(self, image: Image.Image, resized: tuple[int, int], resample: int) -> bool:
        return False


_RESIZER = _TrainingResizer()


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed; by default a random square is cut out, the paper's one augmentation (2.3).

    Args:
        crop_scale: least and greatest share of the image's area that a crop keeps, its sides 3:4 to 4:3; None for a
            square as large as the image allows.
        flip_probability: of a mirror image.
        jitter_probability: of changed colours.
        jitter: the most by which brightness, contrast and saturation are multiplied more or less than 1, and hue is
            turned, in turns.
        grayscale_probability: of an image without colours.

    Raises:
        ValueError: a number is out of range.
    """

    crop_scale: tuple[float, float] | None = None
    flip_probability: float = 0
    jitter_probability: float = 0
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    grayscale_probability: float = 0

    def __post_init__(self) -> None:
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale is {self.crop_scale}, but must be two shares of the area, 0 < a <= b <= 1")
        for name in ("flip_probability", "jitter_probability", "grayscale_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be between 0 and 1")
        if len(self.jitter) != 4 or not all(0 <= most <= 1 for most in self.jitter) or self.jitter[3] > 0.5:
            raise ValueError(
                f"jitter is {self.jitter}, but must be brightness, contrast and saturation from 0 to 1, hue to 0.5"
            )


def training_pixels(
    image: ImageSource,
    name: str,
    processor: BaseImageProcessor,
    augmentation: Augmentation,
    rng: random.Random,
) -> Tensor:
    """Returns the pixels of a training image, (3, S, S) in uint8.

    Large files are decoded at a reduced size, as `decode_image` says, and torch resizes, which is faster than Pillow
    and differs from it by 2/255 at most, in tall images of mere noise by 8/255. Evaluation does neither.

    Args:
        image: whatever can be decoded.
        name: what errors call it.
        processor: has image size and filter.
        augmentation: see there.
        rng: draws everything.

    Raises:
        ImageDecodingError: the image is broken.
    """
    side = processor.crop_size["height"]
    if augmentation.crop_scale is None:
        shorter = max(processor.size.get("shortest_edge") or 0, side)
        rgb = decode_image(image, name=name, minimum_size=shorter)
        resized = resized_size(rgb.size, processor.size)
        square = random_square(resized, side, rng)
    else:
        least = math.ceil(side / math.sqrt(augmentation.crop_scale[0]))
        rgb = decode_image(image, name=name, minimum_size=least)
        rgb = rgb.crop(random_box(rgb.size, augmentation.crop_scale, rng))
        resized, square = (side, side), (0, 0, side, side)
    return _change(_RESIZER.resize_and_crop(rgb, resized, square, processor.resample), augmentation, rng)


def evaluation_pixels(image: Any, processor: BaseImageProcessor) -> Tensor:
    """Returns an image as the processor resizes and crops it, in uint8.

    Args:
        image: whatever the processor takes.
        processor: has sizes and filter.
    """
    return processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]


def random_square(size: tuple[int, int], side: int, rng: random.Random) -> tuple[int, int, int, int]:
    """Returns left, top, right and bottom of a random square of an image.

    Args:
        size: width and height of the image in pixels, neither smaller than the square.
        side: of the square in pixels.
        rng: draws the place.
    """
    top, left = (rng.randint(0, length - side) for length in reversed(size))
    return left, top, left + side, top + side


def random_box(size: tuple[int, int], scale: tuple[float, float], rng: random.Random) -> tuple[int, int, int, int]:
    """Returns left, top, right and bottom of a random part of an image, as torchvision's RandomResizedCrop draws it.

    Args:
        size: width and height of the image in pixels.
        scale: least and greatest share of its area.
        rng: draws area, ratio of the sides and place.
    """
    width, height = size
    for _ in range(_NUM_CROP_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(*map(math.log, _RATIOS)))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            # As shares of the room there is, so that a reduced image is cut at the same place as the whole.
            left, top = round(rng.random() * (width - box_width)), round(rng.random() * (height - box_height))
            return left, top, left + box_width, top + box_height
    box_width = min(width, round(height * _RATIOS[1]))  # the image is too long: its centre
    box_height = min(height, round(width / _RATIOS[0]))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def _change(pixels: Tensor, augmentation: Augmentation, rng: random.Random) -> Tensor:
    if rng.random() < augmentation.flip_probability:
        pixels = pixels.flip(-1)
    if rng.random() < augmentation.jitter_probability:
        pixels = _to_pixels(jitter_colours(_to_image(pixels), augmentation.jitter, rng))
    if rng.random() < augmentation.grayscale_probability:
        pixels = _to_pixels(_to_image(pixels).convert("L").convert("RGB"))
    return pixels.contiguous()


def jitter_colours(image: Image.Image, jitter: tuple[float, float, float, float], rng: random.Random) -> Image.Image:
    """Returns an image with other brightness, contrast, saturation and hue, changed in random order.

    Args:
        image: RGB.
        jitter: as in `Augmentation`.
        rng: draws how much and in which order.
    """
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for number in rng.sample(range(4), 4):
        if number < 3:
            image = enhancers[number](image).enhance(rng.uniform(1 - jitter[number], 1 + jitter[number]))
        else:
            image = turn_hue(image, rng.uniform(-jitter[3], jitter[3]))
    return image


def turn_hue(image: Image.Image, turns: float) -> Image.Image:
    """Returns an image whose colours are turned around the colour circle.

    Args:
        image: RGB.
        turns: -0.5 to 0.5; a third of a turn makes red green.
    """
    hsv = np.array(image.convert("HSV"))
    hsv[..., 0] += np.uint8(round(turns * 255) % 256)  # wraps around, as the colour circle does
    return Image.fromarray(hsv, "HSV").convert("RGB")


def _to_image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def _to_pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
