"""Imports point down, and the files that travel to the Hub need nothing but each other."""

import ast
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "clip_hf"
FILES = sorted(PACKAGE.rglob("*.py"))
MODEL_FILES = sorted((PACKAGE / "model").glob("*.py"))

# What each folder or module of the package may import from the rest of it. Nobody imports the front door, `__init__`.
MAY_IMPORT = {
    "distributed": set(),
    "model": set(),
    "losses": {"distributed", "model"},
    "data": {"model"},
    "training": {"losses", "distributed", "model", "data", "evaluation", "model_card", "hub"},
    "evaluation": {"distributed", "model", "model_card"},
    "conversion": {"model"},
    "model_card": {"model"},
    "hub": {"model", "model_card", "conversion"},
}
MAY_IMPORT["__init__"] = set(MAY_IMPORT)

# What a file that travels may ask of the machine that loads it: transformers, what that brings along, and Pillow.
TRANSFORMERS = {"torch", "transformers", "tokenizers", "huggingface_hub", "safetensors", "numpy", "PIL"}
ALWAYS_THERE = TRANSFORMERS | sys.stdlib_module_names


def imports_of(file: Path) -> list[str]:
    """Every name that `file` imports, anywhere in it, with the dots of a relative import in front."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


def unit_of(file: Path) -> str:
    """The folder or module of the package that holds `file`: `training` for src/clip_hf/training/ema.py."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_units(file: Path) -> set[str]:
    """The folders and modules of clip_hf that `file` imports by absolute name."""
    paths = [[*name.split("."), ""] for name in imports_of(file) if name.split(".")[0] == "clip_hf"]
    return {path[1] if path[1] in MAY_IMPORT else "__init__" for path in paths}


def test_every_folder_has_a_row_in_the_table():
    unknown = sorted({unit_of(file) for file in FILES} - MAY_IMPORT.keys())
    assert not unknown, f"say in MAY_IMPORT what these may import: {unknown}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file):
    unit = unit_of(file)
    allowed = MAY_IMPORT.get(unit, set())
    offences = sorted(imported_units(file) - allowed - {unit})
    assert not offences, f"clip_hf.{unit} may import {sorted(allowed)} of clip_hf, {file.name} imports {offences}"
    if unit != "model":
        relative = [name for name in imports_of(file) if name.startswith(".")]
        assert not relative, f"outside model/ imports are absolute, {file.name} has {relative}"


@pytest.mark.parametrize("file", MODEL_FILES, ids=lambda file: file.name)
def test_what_travels_imports_only_its_siblings(file):
    """Checked with the very functions by which transformers copies the files and loads them again."""
    package = [name for name in imports_of(file) if name.split(".")[0] == "clip_hf"]
    assert not package, f"{file.name} imports {package}, which is not there where the file is loaded from the Hub"

    wanted = sorted(set(get_imports(file)) - ALWAYS_THERE)
    assert not wanted, f"{file.name} demands {wanted}: an optional library belongs in `try: ... except ImportError`"

    copied = set(get_relative_imports(file))
    missing = sorted(name for name in copied if not (file.parent / f"{name}.py").is_file())
    assert not missing, f"saving {file.name} would look for {missing} (a line of a docstring counts as an import too)"
    imported = {name.rpartition(".")[0].removeprefix(".") for name in imports_of(file) if name.startswith(".")}
    assert imported == copied, f"{file.name}: write every import of a sibling as `from .sibling import Name`"
