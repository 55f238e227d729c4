"""Variants of a recipe, as a file names them: what is common to all, and what is another in each."""

from argparse import ArgumentParser
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_hf.training.recipe import read_recipe

NEVER = ("no", False, None)  # an `eval_strategy`; YAML reads a bare `no` as False


@dataclass
class Variant:
    """One training of a comparison.

    Args:
        changes: options that are its own.
        options: all of them.
        folder: name of its folder.
    """

    changes: dict[str, Any]
    options: dict[str, Any]
    folder: str


def read_variants(path: str, command_line: Sequence[str] = ()) -> dict[str, Variant]:
    """Returns the variants of a file, by name.

    Args:
        path: YAML file of a `recipe`, `options` for all, and `variants`, a mapping of options for each name.
        command_line: options that prevail over all of them.

    Raises:
        ValueError: a file is missing or lacks a part, a variant is no mapping or never evaluated, or two of them would
            share a folder.
    """
    content = read_recipe(path)
    if missing := {"recipe", "variants"} - content.keys():
        raise ValueError(f"{path} lacks {' and '.join(sorted(missing))}: see scripts/recipes/flickr8k_variants.yaml")
    if not (content["variants"] and isinstance(content["variants"], dict)):
        raise ValueError(f"{path} has the variants {content['variants']!r}, but must map each name to its options")
    base = merge(read_recipe(str(Path(path).parent / content["recipe"])), content.get("options") or {})
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--eval_strategy")
    given = parser.parse_known_args(command_line)[0].eval_strategy
    variants = {}
    for name, changes in content["variants"].items():
        if not isinstance(changes, dict):
            raise ValueError(f"variant {name} of {path} is {changes!r}, but must be options, or {{}} for none")
        options = merge(base, changes)
        if (given or options.get("eval_strategy")) in NEVER:
            raise ValueError(f"variant {name} of {path} would not be evaluated: set eval_strategy to epoch or steps")
        variants[name] = Variant(changes, options, str(name).replace(" ", "_"))
    folder, number = Counter(variant.folder for variant in variants.values()).most_common(1)[0]
    if number > 1:
        raise ValueError(f"{path} has {number} variants whose folder would be {folder}: rename one of them")
    return variants


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns options with changes, `config` field by field unless another architecture has other fields.

    Args:
        base: options.
        changes: those that are others.
    """
    names = () if "architecture" in changes else [name for name in changes if isinstance(base.get(name), dict)]
    return base | changes | {name: merge(base[name], changes[name]) for name in names}
