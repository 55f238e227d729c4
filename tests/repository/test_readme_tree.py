"""The README's tree is the disk: every file has its line, every line has its file."""

import re
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TREE = re.compile(r"^```\nclip_hf/\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINE = re.compile(r"(?P<indent>(?:│   |    )*)[├└]── (?P<name>\S+)(?:\s+(?P<about>\S.*))?")


def described() -> dict[str, str]:
    """What the README says of each path in its tree; a folder's path ends in a slash."""
    tree = TREE.search(README)
    assert tree, "the README has no code block that begins with clip_hf/"
    folders: list[str] = []
    lines = {}
    for line in tree[1].splitlines():
        match = LINE.fullmatch(line)
        assert match, f"not a line of a tree: {line!r}"
        folders[len(match["indent"]) // 4 :] = [match["name"]]
        lines["".join(folders)] = match["about"]
    return lines


def on_disk() -> set[str]:
    """Every file that `ls` shows in a clone, as a path from the root; what .gitignore names is not in a clone."""
    ignored = [".*", *(line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split())]
    paths = [path for top in ROOT.glob("[!.]*") for path in (top, *top.rglob("*")) if path.is_file()]
    files = [path.relative_to(ROOT) for path in paths]
    return {
        file.as_posix()
        for file in files
        if not any(fnmatch(part, pattern) for part in file.parts for pattern in ignored)
    }


def is_covered(path: str, lines: dict[str, str]) -> bool:
    """Whether a folder's line speaks for a file, with no line below the folder. Modules and scripts need their own."""
    if path.endswith("/__init__.py"):
        return True
    if path.endswith(".py") and path.startswith(("src/", "scripts/")):
        return False
    folders = [path[: end + 1] for end, letter in enumerate(path) if letter == "/"]
    return any(folder in lines and sum(line.startswith(folder) for line in lines) == 1 for folder in folders)


def test_every_file_has_its_line():
    lines = described()
    missing = sorted(path for path in on_disk() - lines.keys() if not is_covered(path, lines))
    assert not missing, "the README's tree lacks:\n" + "\n".join(missing)


def test_every_line_has_its_file():
    superfluous = [path for path in described() if not (ROOT / path).exists()]
    assert not superfluous, "the README's tree has, the disk has not:\n" + "\n".join(superfluous)


def test_every_line_says_what_is_there():
    silent = [path for path, about in described().items() if not about]
    assert not silent, "the README's tree says nothing of:\n" + "\n".join(silent)
