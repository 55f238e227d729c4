"""Classes of a data set: names from the data or a file, and the number of each image's class."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clip_hf.model.zero_shot_clip_hf import check_class_names

ClassNames = Sequence[str] | Mapping[str, str]


def read_text(file: str | os.PathLike[str]) -> str:
    """Returns the text of a file, raising a ValueError that names it where it is not UTF-8."""
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8: {error}") from error


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
    text = read_text(path)
    if path.suffix != ".json":
        return [line.strip() for line in text.split("\n") if line.strip()]
    try:
        names = json.loads(text, object_pairs_hook=_without_duplicates)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON, or not of classes: {error}") from error
    values = list(names.values()) if isinstance(names, dict) else names
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{file} must be a list of names, or an object with a name for each label")
    return names


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        labels = [label for label, _ in pairs]
        raise ValueError(f"it names a label twice, {next(one for one in labels if labels.count(one) > 1)!r}")
    return table


class Classes(NamedTuple):
    """The classes of a data set.

    Args:
        names: C names.
        numbers: the class of each label that the data may have.
    """

    names: tuple[str, ...]
    numbers: dict[str, int]

    @classmethod
    def find(
        cls, texts: Iterable[Sequence[str]], class_names: ClassNames | None, *, names_are_prompts: bool = True
    ) -> "Classes":
        """Returns the classes of a whole data set, whatever part of it is evaluated.

        Without `class_names`, the classes are the labels that occur, in alphabetical order. A list is of all classes,
        and a label one of them or, where none is, a number from 0; a mapping gives each label its name. Negative
        numbers are no labels: data sets give them to images whose class is not known.

        Args:
            texts: of each row one label, as the data has it.
            class_names: as of `read_class_names`.
            names_are_prompts: texts are made of the names, so that numbers are none, and case makes no difference.

        Raises:
            ValueError: a row has several labels, or none has any; a label is unknown or out of range; a class has no
                image or a name comes twice; or the labels are numbers without names.
        """
        labels = {_only_label(row, values) for row, values in enumerate(texts)}
        found = sorted(label for label in labels if not _is_unlabelled(label))
        if not found:
            raise ValueError("not one image has a label: they must be texts, or whole numbers from 0")
        if isinstance(class_names, Mapping):
            given, numbers = list(class_names.values()), {label: row for row, label in enumerate(class_names)}
        elif class_names is None:
            if all(label.isdecimal() for label in found):
                if names_are_prompts:
                    shown = ", ".join(found[:10])
                    raise ValueError(f"the labels are numbers ({shown}): pass class_names, a file of names")
                found.sort(key=int)
            given, numbers = found, {label: row for row, label in enumerate(found)}
        else:
            given, numbers = list(class_names), {name: row for row, name in enumerate(class_names)}
            if not set(found) & set(given):
                numbers = {str(row): row for row in range(len(given))}
        classes = cls(check_class_names(given), numbers)
        classes._check(found, names_are_prompts)
        return classes

    def _check(self, found: list[str], names_are_prompts: bool) -> None:
        if unknown := [label for label in found if label not in self.numbers]:
            known = ", ".join(list(self.numbers)[:10])
            raise ValueError(
                f"{len(unknown)} labels are none of {len(self.names)} classes ({known}): {', '.join(unknown[:10])}"
            )
        if empty := self.missing({self.numbers[label] for label in found}):
            raise ValueError(
                f"{len(empty)} of {len(self.names)} classes have no image, the first: {', '.join(empty[:10])}. Leave "
                "them out of class_names"
            )
        alike: dict[str, str] = {}
        for name in self.names if names_are_prompts else ():
            other = alike.setdefault(" ".join(name.casefold().split()), name)
            if other != name:
                raise ValueError(
                    f"{other!r} and {name!r} are two classes, but read alike by a tokenizer: make them one"
                )

    @property
    def names_of_labels(self) -> dict[str, str]:
        """The name of each label, as `find` takes them for another part of the data."""
        return {label: self.names[number] for label, number in self.numbers.items()}

    def holds(self, text: str) -> bool:
        """Whether a text is the label of a class."""
        return text.strip() in self.numbers

    def of(self, texts: Sequence[Sequence[str]]) -> Tensor:
        """Returns the class (N,) of each image.

        Args:
            texts: N lists of one label.

        Raises:
            ValueError: an image has several labels.
        """
        labels = [_only_label(row, values) for row, values in enumerate(texts)]
        return torch.tensor([self.numbers[label] for label in labels], dtype=torch.long)

    def missing(self, classes: Iterable[int]) -> list[str]:
        """Returns the names of those that are not among some classes."""
        present = set(classes)
        return [name for row, name in enumerate(self.names) if row not in present]


def _is_unlabelled(label: str) -> bool:
    return re.fullmatch(r"-\d+", label) is not None


def _only_label(row: int, values: Sequence[str]) -> str:
    labels = {value.strip() for value in values}
    if len(labels) != 1:
        raise ValueError(f"image {row} has {len(values)} labels, {', '.join(values[:5])}, but must have one")
    return labels.pop()
