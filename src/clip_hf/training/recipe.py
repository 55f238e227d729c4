"""Options of a command from a YAML file, from the command line, or from both."""

from argparse import Action, ArgumentError, ArgumentParser
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser
from yaml.composer import ComposerError


def parse_recipe(
    dataclasses: tuple[type, ...], description: str | None, args: list[str] | None = None
) -> tuple[Any, ...]:
    """Returns one object of each class; what the command line says prevails over the recipe, if it names one.

    Args:
        dataclasses: classes whose fields are the options, as `HfArgumentParser` takes them.
        description: of the command, for its help.
        args: the command line, `sys.argv` by default.

    Raises:
        ValueError: the recipe is no mapping of options, or sets something that is no option, or to what it cannot be.
    """
    parser = HfArgumentParser(dataclasses, description=description)
    parser.add_argument("recipe", nargs="?", help="YAML file that sets any of the options below.")
    required = [action for action in parser._actions if action.required]
    for action in required:
        action.required = False
    recipe = parser.parse_known_args(args)[0].recipe
    options = {} if recipe is None else read_recipe(recipe)
    actions = {action.dest: action for action in reversed(parser._actions)}  # of `--x` and `--no_x`, the former
    unknown = sorted(options.keys() - actions.keys())
    if unknown:
        raise ValueError(f"{recipe} sets {', '.join(unknown)}, which are no options of this command: see --help")
    if recipe is not None:
        written = _read_mapping(recipe, _WordLoader)
        for name, value in options.items():
            try:
                parser.set_defaults(**{name: _convert(parser, actions[name], value, written[name])})
            except ArgumentError as error:
                raise ValueError(f"{recipe} sets {name} to {value!r}, but {error.message}") from error
    for action in required:
        action.required = action.dest not in options
    return parser.parse_args_into_dataclasses(args)[: len(dataclasses)]


def read_recipe(recipe: str) -> dict[str, Any]:
    """Returns the options that a recipe sets.

    Args:
        recipe: a YAML file.

    Raises:
        ValueError: there is no such file, or it is no YAML, sets something twice, or holds no mapping.
    """
    return _read_mapping(recipe, _Loader)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is set twice, of which YAML would take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise ComposerError(None, None, f"'{key.value}' is set twice", key.start_mark)
            seen.add(str(key.value))
        return node


class _WordLoader(_Loader):
    """Leaves a value as it is written, but for null: what `no` or `1e-3` means is the option's to say."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith(":null")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _read_mapping(recipe: str, loader: type[_Loader]) -> dict[str, Any]:
    if not Path(recipe).is_file():
        raise ValueError(f"there is no recipe {recipe}: name a YAML file of options, or set options by `--name value`")
    try:
        with open(recipe, "rb") as file:  # whose name is in the error
            options = yaml.load(file, loader)
    except yaml.YAMLError as error:
        raise ValueError(f"the recipe cannot be read: {' '.join(str(error).split())}") from error
    if options is not None and not isinstance(options, dict):
        raise ValueError(
            f"{recipe} holds a {type(options).__name__}, but must hold lines such as `output_dir: outputs`"
        )
    return options or {}


def _convert(parser: ArgumentParser, action: Action, value: Any, written: Any) -> Any:
    """Returns a value of a recipe as the command line would give it."""
    is_list = action.nargs in ("+", "*")
    if value is None or (isinstance(value, list | dict) and action.type in (str, dict) and not is_list):
        return value
    words = written if isinstance(written, list) else [written]
    if isinstance(written, dict) or (isinstance(written, list) and not is_list):
        raise ArgumentError(action, f"{'plain values are' if is_list else 'one value is'} expected")
    return parser._get_values(action, words)
