"""Sizes and names: what keeps a file readable and the repository independent of one machine."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")])
HIDDEN = (".ci/run", ".pre-commit-config.yaml", ".github/**/*")
TEXTS = sorted(
    file
    for pattern in ("*", "src/**/*", "scripts/**/*", "tests/**/*", "model_cards/**/*", *HIDDEN)
    for file in ROOT.glob(pattern)
    if file.is_file() and file.suffix in {"", ".md", ".py", ".toml", ".txt", ".json", ".yaml", ".yml"}
)

MAX_LINES_PER_FILE = 350
MAX_LINES_PER_SCRIPT = 100
MAX_LINES_PER_FUNCTION = 60
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}

# A path of somebody's machine, or a host of packages: both belong in that machine's own settings.
MACHINE = re.compile(r"(?<![\w.)}-])/(?:work|root|home|Users|opt|mnt)/|(?:pypi|pythonhosted|download\.pytorch)\.org")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def path_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def function_lines(node: Function) -> int:
    """The lines of a function without its docstring."""
    documented = ast.get_docstring(node, clean=False) is not None
    docstring = node.body[0].end_lineno - node.body[0].lineno + 1 if documented else 0
    return node.end_lineno - node.lineno + 1 - docstring


@pytest.mark.parametrize("file", SOURCES, ids=path_of)
def test_files_and_functions_are_short(file):
    text = file.read_text(encoding="utf-8")
    limit = MAX_LINES_PER_SCRIPT if file.parent == ROOT / "scripts" else MAX_LINES_PER_FILE
    lines = len(text.splitlines())
    assert lines <= limit, f"{path_of(file)} has {lines} lines, {limit} are allowed"

    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, Function)]
    long = {node.name: function_lines(node) for node in functions if function_lines(node) > MAX_LINES_PER_FUNCTION}
    assert not long, f"{path_of(file)} has functions of more than {MAX_LINES_PER_FUNCTION} lines: {long}"


def test_every_file_is_named_after_its_subject():
    nameless = [path_of(file) for file in SOURCES if file.stem in NAMES_THAT_SAY_NOTHING]
    assert not nameless, f"the names of these do not tell their subject: {nameless}"


def test_every_folder_of_the_package_is_a_package():
    """Without `__init__.py` a folder is left out of the wheel."""
    folders = {file.parent for file in (ROOT / "src").rglob("*.py")}
    bare = sorted(path_of(folder) for folder in folders if not (folder / "__init__.py").is_file())
    assert not bare, f"these need an __init__.py: {bare}"


def test_no_file_names_a_machine():
    found = [
        f"{path_of(file)}:{number}: {line.strip()}"
        for file in TEXTS
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if MACHINE.search(line)
    ]
    assert not found, "\n".join(found)
