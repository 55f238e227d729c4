from dataclasses import dataclass, field

import pytest
from transformers.trainer_utils import SaveStrategy

from clip_hf.training.recipe import parse_recipe


@dataclass
class Options:
    """Some options."""

    rate: float = field(default=0.5, metadata={"help": "A rate."})
    name: str | None = field(default=None, metadata={"help": "A name."})
    flag: bool = field(default=False, metadata={"help": "A flag."})
    config: dict | str | None = field(default=None, metadata={"help": "A configuration."})
    number: int | None = field(default=None, metadata={"help": "A number."})
    moment: SaveStrategy | str = field(default="steps", metadata={"help": "When."})
    scales: list[float] | None = field(default=None, metadata={"help": "Scales."})


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("rate: 1e-3\nflag: true\nconfig: {depth: 2}\n")
    return str(path)


def test_the_command_line_prevails_over_the_recipe(recipe):
    assert parse_recipe((Options,), None, []) == (Options(),)
    assert parse_recipe((Options,), None, [recipe]) == (Options(rate=1e-3, flag=True, config={"depth": 2}),)
    for args in (["--rate", "2", recipe, "--flag", "false"], [recipe, "--flag", "false", "--rate=2"]):
        assert parse_recipe((Options,), None, args) == (Options(rate=2.0, config={"depth": 2}),)


def test_an_option_that_does_not_exist_is_named(recipe, tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("rate: 1\nrat: 2\n")
    with pytest.raises(ValueError, match=r"wrong.yaml sets rat, which are no options"):
        parse_recipe((Options,), None, [str(wrong)])
    with pytest.raises(ValueError, match="--rat"):
        parse_recipe((Options,), None, [recipe, "--rating", "2"])


def test_a_value_is_read_as_on_the_command_line(tmp_path):
    """YAML 1.1 takes `no` for false, 2024 for a number and `1e-3` for a word."""
    path = tmp_path / "recipe.yaml"
    path.write_text("rate: 1e-3\nname: 2024\nmoment: no\nnumber: 7\nscales: [1, 5e-1]\nconfig:\n")
    (options,) = parse_recipe((Options,), None, [str(path)])
    assert options == Options(rate=1e-3, name="2024", moment=SaveStrategy.NO, number=7, scales=[1.0, 0.5])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("number: 12.5", r"recipe.yaml sets number to 12.5, but invalid int value: '12.5'"),
        ("number: [1, 2]", r"sets number to \[1, 2\], but one value is expected"),
        ("rate: {a: 1}", r"sets rate to \{'a': 1\}, but one value is expected"),
        ("flag: [true]", r"sets flag to \[True\], but one value is expected"),
        ("flag: perhaps", r"sets flag to 'perhaps'"),
        ("moment: never", r"sets moment to 'never', but .*'no'.*'steps'"),
        ("scales: [a]", r"sets scales to \['a'\], but invalid float value"),
        ("- rate", r"recipe.yaml holds a list, but must hold lines such as"),
        (
            "rate: 1\n\tflag: true",
            r"cannot be read: .*'\\t' that cannot start any token in \".*yaml\", line 2, column 1$",
        ),
        ("scales: [1, 2", r"cannot be read: .*expected ',' or ']'.* in \".*recipe.yaml\", line 1, column 14$"),
        ("name: a\0b", r"cannot be read: .*special characters are not allowed in \".*recipe.yaml\", position 7$"),
        ("name: \udcff", r"cannot be read: .*invalid start byte in \".*recipe.yaml\", position 6$"),
        ("rate: 1\nrate: 2", r"cannot be read: 'rate' is set twice in \".*recipe.yaml\", line 2, column 1$"),
        ("config: {a: 1, a: 2}", r"cannot be read: 'a' is set twice in \".*recipe.yaml\", line 1, column 16$"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_the_recipe(text, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        parse_recipe((Options,), None, [str(path)])


def test_a_mapping_may_begin_with_another(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("config: {<<: {depth: 2, width: 3}, depth: 4}\n")
    assert parse_recipe((Options,), None, [str(path)]) == (Options(config={"depth": 4, "width": 3}),)


def test_a_recipe_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no recipe nowhere.yaml"):
        parse_recipe((Options,), None, ["nowhere.yaml"])


@dataclass
class Required:
    """Something that must be given."""

    place: str = field(metadata={"help": "A place."})


def test_what_is_required_may_come_from_either(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text("place: here\n")
    assert parse_recipe((Required,), None, [str(path)]) == (Required("here"),)
    assert parse_recipe((Required,), None, ["--place", "there"]) == (Required("there"),)
    with pytest.raises(SystemExit):
        parse_recipe((Required,), None, [])
    assert "required: --place" in capsys.readouterr().err


def test_help_describes_options_and_recipe(capsys):
    with pytest.raises(SystemExit):
        parse_recipe((Options,), "Does something.", ["--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage:") and "Does something." in text and "A rate. (default: 0.5)" in text
