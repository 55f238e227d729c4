"""What the documents tell people to type exists: make targets, scripts and their options, linked files."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
AUTOMATION = [ROOT / ".ci" / "run", ROOT / ".pre-commit-config.yaml"]
SCRIPTS = sorted([*ROOT.glob("scripts/*.py"), *ROOT.glob("scripts/benchmarks/*.py")])

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
MAKE = re.compile(r"\bmake +(?:[A-Z_]+=\S+ +)*([a-z][a-z-]*)")
OPTION = re.compile(r"(?<!\S)--[\w-]+")


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def code(document: Path, language: str) -> list[str]:
    """The contents of the document's code blocks in one language."""
    return [text for tag, text in BLOCK.findall(document.read_text(encoding="utf-8")) if tag == language]


def commands(document: Path) -> list[str]:
    """A document's shell commands, in blocks and between backticks: continued lines joined, comments removed."""
    text = document.read_text(encoding="utf-8")
    lines = "\n".join(code(document, "bash")).replace("\\\n", " ").splitlines() + INLINE.findall(BLOCK.sub("", text))
    return [line.partition(" #")[0] for line in lines]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_every_make_target_in_use_exists():
    used = {target for document in DOCUMENTS for line in commands(document) for target in MAKE.findall(line)}
    used |= {target for file in AUTOMATION for target in MAKE.findall(file.read_text(encoding="utf-8"))}
    assert used <= make_targets(), f"the Makefile lacks {sorted(used - make_targets())}"
    assert {"demo", "test"} <= used, "the README's two commands are gone"


def test_every_target_has_its_line_of_help():
    help_text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    explained = set(re.findall(r"^  make ([a-z-]+) +\S", help_text, re.MULTILINE))
    silent = sorted(make_targets() - explained)
    assert not silent, f"write `## what it does` behind {silent}"


def test_a_commit_is_held_to_what_ci_runs():
    ci, hook = (file.read_text(encoding="utf-8") for file in AUTOMATION)
    assert re.findall(r"^make .*", ci, re.MULTILINE) == ["make check", "make test"]
    assert re.findall(r"entry: (.*)", hook) == ["make check"]
    assert "run: .ci/run\n" in (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")


def test_every_script_in_use_exists():
    lines = [line for document in DOCUMENTS for line in commands(document)]
    used = {script for line in lines for script in re.findall(r"\bscripts/[\w/]+\.(?:py|yaml|json)", line)}
    missing = sorted(script for script in used if not (ROOT / script).is_file())
    assert not missing, f"the documents name {missing}"


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_every_script_explains_itself(script, monkeypatch, capfd):
    """The options that the documents show must be in what `--help` prints.

    The scripts run in this process, as `python <script> --help` would run them: a process each would spend its
    seconds on importing torch and transformers once more.
    """
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(script.parent)
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        assert not end.code, capfd.readouterr().err
    printed = capfd.readouterr().out
    assert printed.startswith("usage:"), printed

    shown = {
        option
        for document in DOCUMENTS
        for line in commands(document)
        if name_of(script) in line
        for option in OPTION.findall(line.partition(name_of(script))[2])
    }
    known = set(OPTION.findall(printed.replace(",", " ").replace("[", " ").replace("]", " ")))
    assert shown <= known, f"{script.name} does not know {sorted(shown - known)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_between_files_resolve(document):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing, f"{document.name} links to {missing}"
