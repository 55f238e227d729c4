"""Captioned images of coloured shapes, drawn on the fly: data that needs no download.

Each image shows one shape of one colour and size at one position on a shaded, noisy ground, and its caption says
so. Colours, sizes, positions and angles vary from image to image.

A quarter of the combinations is `UNSEEN`, to be left out of training: those whose colour and shape stand at places of
`COLOURS` and `SHAPES` that add up to a multiple of four. There are no red circles among the `SEEN`, of whatever size
and wherever, though every word of a caption is: who names a red circle has understood "red" and "circle".
"""

import colorsys
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from torch.utils.data import Dataset


def _on_circle(degrees: np.ndarray) -> np.ndarray:
    """Points (N, 2) of the unit circle, at angles clockwise from the top."""
    radians = np.radians(degrees)
    return np.stack([np.sin(radians), -np.cos(radians)], axis=1)


def _heart() -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    y = -13 * np.cos(angle) + 5 * np.cos(2 * angle) + 2 * np.cos(3 * angle) + np.cos(4 * angle) - 2
    return np.stack([16 * np.sin(angle) ** 3, y], axis=1) / 17


def _cross(half_width: float) -> np.ndarray:
    notch = [(-half_width, -1), (half_width, -1), (half_width, -half_width)]
    quarter_turn = np.array([(0, 1), (-1, 0)])
    return np.concatenate([np.array(notch) @ np.linalg.matrix_power(quarter_turn, turn) for turn in range(4)])


# Hue in degrees, saturation and value in 0..1.
COLOURS = {
    "red": (0, 0.85, 0.9),
    "orange": (28, 0.95, 1.0),
    "yellow": (54, 0.85, 1.0),
    "green": (125, 0.8, 0.7),
    "blue": (220, 0.85, 0.95),
    "purple": (272, 0.7, 0.75),
    "pink": (330, 0.45, 1.0),
    "white": (0, 0.0, 0.97),
}
# Corners (N, 2) of a polygon, x to the right and y downwards, of about the unit circle's size.
SHAPES = {
    "circle": _on_circle(np.arange(0, 360, 7.5)),
    "square": 1.2 * _on_circle(np.arange(45, 360, 90)),
    "triangle": 1.15 * _on_circle(np.arange(0, 360, 120)),
    "star": _on_circle(np.arange(0, 360, 36)) * np.tile([1.1, 0.46], 5)[:, None],
    "heart": _heart(),
    "cross": _cross(0.36),
}
# Least and greatest radius, as a share of the image's side.
SIZES = {"small": (0.10, 0.13), "large": (0.19, 0.23)}
# Centre, x and y, as shares of the image's side.
POSITIONS = {
    "top left": (0.28, 0.28),
    "top right": (0.72, 0.28),
    "middle": (0.5, 0.5),
    "bottom left": (0.28, 0.72),
    "bottom right": (0.72, 0.72),
}
CAPTIONS = (
    "a {size} {colour} {shape} in the {position}",
    "a picture of a {size} {colour} {shape} in the {position}",
    "in the {position} there is a {size} {colour} {shape}",
    "a {colour} {shape}, {size}, in the {position}",
)
ZERO_SHOT_TEMPLATES = ("a {}", "a picture of a {}")

# An image is drawn so many times larger and then averaged, for smooth edges.
OVERSAMPLING = 4


class Combination(NamedTuple):
    """What one image shows: keys of `COLOURS`, `SHAPES`, `SIZES` and `POSITIONS`."""

    colour: str
    shape: str
    size: str
    position: str

    @property
    def name(self) -> str:
        """Its name as a class: "small red circle in the top left"."""
        return f"{self.size} {self.colour} {self.shape} in the {self.position}"

    @property
    def captions(self) -> list[str]:
        """All that a caption may say of it."""
        return [caption.format(**self._asdict()) for caption in CAPTIONS]

    @property
    def is_unseen(self) -> bool:
        """Whether it is left out of training, by the rule above."""
        return (list(COLOURS).index(self.colour) + list(SHAPES).index(self.shape)) % 4 == 0


COMBINATIONS = tuple(itertools.starmap(Combination, itertools.product(COLOURS, SHAPES, SIZES, POSITIONS)))
SEEN = tuple(combination for combination in COMBINATIONS if not combination.is_unseen)
UNSEEN = tuple(combination for combination in COMBINATIONS if combination.is_unseen)

# What guessing among all combinations gives of the shares of `accuracy`.
CHANCE = {"top-1": 1 / len(COMBINATIONS), "top-5": 5 / len(COMBINATIONS)}
CHANCE |= {part: 1 / len({getattr(one, part) for one in COMBINATIONS}) for part in Combination._fields}


def accuracy(answers: Sequence[Sequence[Combination]], truths: Sequence[Combination]) -> dict[str, float]:
    """Returns shares of images: named right, right among the first five, each part of the first name right.

    Args:
        answers: for each image at least five combinations, the best first.
        truths: what the images show.
    """
    pairs = list(zip(answers, truths, strict=True))
    hits = {"top-1": [names[0] == truth for names, truth in pairs]}
    hits["top-5"] = [truth in names[:5] for names, truth in pairs]
    for part in Combination._fields:
        hits[part] = [getattr(names[0], part) == getattr(truth, part) for names, truth in pairs]
    return {name: sum(values) / len(values) for name, values in hits.items()}


class ShapesDataset(Dataset):
    """Images of some combinations with their captions, each drawn when it is asked for.

    An example depends on the seed and on its index alone. The combinations come in rounds, each in an order of its
    own: read in sequence, a batch whose size divides their number never holds one twice, so that all other captions of
    a batch are wrong for an image, as the contrastive loss takes them to be.

    Args:
        combinations: what to draw: `SEEN`, `UNSEEN`, `COMBINATIONS` or a part of them.
        num_examples: length of the data set; one image of each combination if not given.
        image_size: height and width in pixels, at least 16.
        seed: another one gives other images, in another order.

    Raises:
        ValueError: there are no combinations, no examples, or too few pixels.
    """

    def __init__(
        self,
        combinations: Sequence[Combination] = COMBINATIONS,
        num_examples: int | None = None,
        image_size: int = 64,
        seed: int = 0,
    ) -> None:
        num_examples = len(combinations) if num_examples is None else num_examples
        if not combinations:
            raise ValueError("combinations is empty: pass SEEN, UNSEEN, COMBINATIONS or a part of them")
        if num_examples < 1:
            raise ValueError(f"num_examples is {num_examples}, but must be at least 1")
        if image_size < 16:
            raise ValueError(f"image_size is {image_size}, but shapes cannot be told apart below 16 pixels")
        self.combinations = combinations
        self.num_examples = num_examples
        self.image_size = image_size
        self.seed = seed

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns an example: "image", a PIL image in RGB, and "text", one of the captions.

        Raises:
            IndexError: the index is not in [0, num_examples).
        """
        combination = self.combination(index)
        rng = np.random.default_rng((self.seed, 1, index))
        text = combination.captions[rng.integers(len(CAPTIONS))]
        return {"image": draw_image(combination, rng, self.image_size), "text": text}

    def combination(self, index: int) -> Combination:
        """Returns what the image of an index shows.

        Raises:
            IndexError: the index is not in [0, num_examples).
        """
        if not 0 <= index < self.num_examples:
            raise IndexError(f"index {index} is not in [0, {self.num_examples})")
        turn, place = divmod(index, len(self.combinations))
        order = np.random.default_rng((self.seed, 0, turn)).permutation(len(self.combinations))
        return self.combinations[order[place]]

    def write(self, folder: Path, indices: Iterable[int]) -> None:
        """Writes images as PNG files, and metadata.jsonl with their captions and, as label_name, such as "red circle".

        Args:
            folder: made if needed.
            indices: of the images.
        """
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for index in indices:
            name, combination = f"{index:05d}.png", self.combination(index)
            self[index]["image"].save(folder / name)
            label = f"{combination.colour} {combination.shape}"
            lines.append({"file_name": name, "captions": combination.captions, "label_name": label})
        (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def draw_image(combination: Combination, rng: np.random.Generator, image_size: int = 64) -> Image.Image:
    """Returns an image in RGB of a combination; no two are alike.

    Args:
        combination: what to draw.
        rng: draws the ground, the noise, and how far hue, size, centre and angle are off.
        image_size: height and width in pixels.
    """
    coverage = _draw_shape(combination, rng, image_size)
    ground = _draw_ground(rng, image_size)
    noise = 0.05 * rng.standard_normal((image_size, image_size, 1), dtype=np.float32)
    pixels = ground + (_draw_colour(combination, rng) - ground) * coverage + noise
    return Image.fromarray((255 * pixels).clip(0, 255).astype(np.uint8))


def _draw_shape(combination: Combination, rng: np.random.Generator, image_size: int) -> np.ndarray:
    """The share of each pixel that the shape covers, (H, W, 1)."""
    radius = rng.uniform(*SIZES[combination.size])
    centre = POSITIONS[combination.position] + rng.uniform(-0.05, 0.05, size=2)
    angle = np.radians(rng.uniform(-15, 15))
    rotation = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    large_size = OVERSAMPLING * image_size
    corners = (SHAPES[combination.shape] @ rotation * radius + centre) * large_size
    mask = Image.new("L", (large_size, large_size))
    ImageDraw.Draw(mask).polygon([tuple(corner) for corner in corners.tolist()], fill=255)
    return np.asarray(mask.reduce(OVERSAMPLING), dtype=np.float32)[..., None] / 255


def _draw_colour(combination: Combination, rng: np.random.Generator) -> np.ndarray:
    """The shape's colour, (3,) in 0..1."""
    degrees, saturation, value = COLOURS[combination.colour]
    hue = (degrees + rng.uniform(-8, 8)) / 360 % 1
    saturation = min(1, saturation * rng.uniform(0.85, 1.1))
    value = min(1, value * rng.uniform(0.88, 1.05))
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), dtype=np.float32)


def _draw_ground(rng: np.random.Generator, image_size: int) -> np.ndarray:
    """A shade from one dull, dark colour to another, in any direction, (H, W, 3) in 0..1."""
    hues, saturations, values = rng.uniform(0, 1, 2), rng.uniform(0.1, 0.45, 2), rng.uniform(0.12, 0.42, 2)
    ends = np.array([colorsys.hsv_to_rgb(*hsv) for hsv in zip(hues, saturations, values, strict=True)], np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    side = np.linspace(-0.35, 0.35, image_size, dtype=np.float32)
    ramp = 0.5 + np.float32(np.cos(angle)) * side + np.float32(np.sin(angle)) * side[:, None]
    return ends[0] + (ends[1] - ends[0]) * ramp[..., None]
