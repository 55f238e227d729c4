"""Options of a command from a YAML file, from the command line, or from both."""

from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


def parse_recipe(
    dataclasses: tuple[type, ...], description: str | None, args: list[str] | None = None
) -> tuple[Any, ...]:
    """Returns one object of each class; what the command line says prevails over the recipe, if it names one.

    Args:
        dataclasses: classes whose fields are the options, as `HfArgumentParser` takes them.
        description: of the command, for its help.
        args: the command line, `sys.argv` by default.

    Raises:
        ValueError: the recipe sets something that is no option.
    """
    parser = HfArgumentParser(dataclasses, description=description)
    parser.add_argument("recipe", nargs="?", help="YAML file that sets any of the options below.")
    required = [action for action in parser._actions if action.required]
    for action in required:
        action.required = False
    recipe = parser.parse_known_args(args)[0].recipe
    options = {} if recipe is None else read_recipe(recipe)
    unknown = sorted(options.keys() - {action.dest for action in parser._actions})
    if unknown:
        raise ValueError(f"{recipe} sets {', '.join(unknown)}, which are no options of this command: see --help")
    parser.set_defaults(**options)
    for action in required:
        action.required = action.dest not in options
    return parser.parse_args_into_dataclasses(args)[: len(dataclasses)]


def read_recipe(recipe: str) -> dict[str, Any]:
    """Returns the options that a recipe sets.

    Args:
        recipe: a YAML file.
    """
    return yaml.safe_load(Path(recipe).read_text(encoding="utf-8")) or {}
