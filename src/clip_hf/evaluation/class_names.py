"""Classes of a data set: names from the data or a file, and the number of each image's class."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from clip_hf.model.zero_shot_clip_hf import check_class_names

ClassNames = Sequence[str] | Mapping[str, str]


def read_class_names(file: str | os.PathLike[str]) -> ClassNames:
    """Returns names in the order of the labels 0, 1, ..., or by label.

    Args:
        file: a name a line; or .json, a list of names, or an object with the name of each label that the data has.

    Raises:
        ValueError: the file is missing or holds something else.
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"class_names is {file}, which is no file: write a name a line, or an object in a .json file")
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        names = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    values = list(names.values()) if isinstance(names, dict) else names
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{file} must be a list of names, or an object with a name for each label")
    return names


def number_classes(texts: Sequence[Sequence[str]], class_names: ClassNames | None) -> tuple[tuple[str, ...], Tensor]:
    """Returns the names of C classes, and the class (N,) of each image.

    Without `class_names`, the classes are the labels that occur, in alphabetical order. A list is of all classes, and
    a label one of them or, where none is, a number from 0; a mapping gives each label its name.

    Args:
        texts: N lists of one label, as the data has it.
        class_names: as of `read_class_names`.

    Raises:
        ValueError: an image has not one label; a label is unknown or out of range; a class has no image or a name
            comes twice; or the labels are numbers without names.
    """
    labels = [_only_label(row, values) for row, values in enumerate(texts)]
    found = sorted(set(labels))
    if isinstance(class_names, Mapping):
        given, numbers = list(class_names.values()), {label: row for row, label in enumerate(class_names)}
    elif class_names is None:
        if all(label.isdecimal() for label in found):
            raise ValueError(f"the labels are numbers ({', '.join(found[:10])}): pass class_names, a file of names")
        given, numbers = found, {label: row for row, label in enumerate(found)}
    else:
        given, numbers = list(class_names), {name: row for row, name in enumerate(class_names)}
        if not set(found) & set(given):
            numbers = {str(row): row for row in range(len(given))}
    names = check_class_names(given)
    unknown = [label for label in found if label not in numbers]
    if unknown:
        known = ", ".join(list(numbers)[:10])
        raise ValueError(
            f"{len(unknown)} labels are none of {len(names)} classes ({known}): {', '.join(unknown[:10])}"
        )
    classes = torch.tensor([numbers[label] for label in labels])
    empty = [names[row] for row in range(len(names)) if row not in set(classes.tolist())]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(names)} classes have no image, the first: {', '.join(empty[:10])}. Leave them out "
            "of class_names, or raise the limit"
        )
    return names, classes


def _only_label(row: int, values: Sequence[str]) -> str:
    if len(set(values)) != 1:
        raise ValueError(f"image {row} has {len(values)} labels, {', '.join(values[:5])}, but must have one")
    return values[0].strip()
