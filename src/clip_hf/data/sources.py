"""Where examples come from: folders of images with their captions, or pictures drawn on the fly."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

from datasets import Image, load_dataset

from clip_hf.data.shapes import SEEN, UNSEEN, ShapesDataset

SHAPES = "shapes"
NUM_PICTURES_OF_EACH_SHAPE = 64


class Examples(Protocol):
    """A sequence of examples: "image", a picture in any form that the processor takes, and "captions" or "text"."""

    def __len__(self) -> int:
        """Returns the number of examples."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example."""


def load_examples(source: str | os.PathLike[str], split: Literal["training", "evaluation"]) -> Examples:
    """Returns the examples of a source.

    Args:
        source: "shapes", pictures of which evaluation has other combinations than training; or a folder for
            `load_image_folder`.
        split: of the shapes.

    Raises:
        ValueError: as `load_image_folder`.
    """
    if source != SHAPES:
        return load_image_folder(source)
    if split == "training":
        return ShapesDataset(SEEN, NUM_PICTURES_OF_EACH_SHAPE * len(SEEN))
    return ShapesDataset(UNSEEN, seed=1)


def load_image_folder(folder: str | os.PathLike[str]) -> Examples:
    """Returns the examples of an `imagefolder` of the datasets library, its images not yet decoded.

    Args:
        folder: holds images and a metadata.jsonl, one object a line with `file_name` and either `captions`, a list, or
            `text`.

    Raises:
        ValueError: there is no such folder, no metadata.jsonl in it, or no caption in that.
    """
    if not Path(folder, "metadata.jsonl").is_file():
        raise ValueError(
            f"{folder} has no metadata.jsonl: one line for each image, with file_name and text or captions"
        )
    examples = load_dataset("imagefolder", data_dir=str(folder), split="train")
    if not {"captions", "text"} & set(examples.column_names):
        raise ValueError(f"{folder}/metadata.jsonl has {examples.column_names}, but needs captions or text")
    return examples.cast_column("image", Image(decode=False))


def captions_of(example: dict[str, Any]) -> list[str]:
    """Returns all captions of an example."""
    return example["captions"] if "captions" in example else [example["text"]]


def all_captions(examples: Examples) -> Iterable[list[str]]:
    """Returns the captions of each example, for a tokenizer to learn from; drawn shapes are not drawn for that."""
    if isinstance(examples, ShapesDataset):
        return (combination.captions for combination in examples.combinations)
    return (captions_of(examples[index]) for index in range(len(examples)))
