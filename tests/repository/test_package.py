"""The package as others receive it: its version, its pins and its wheel."""

import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import clip_hf

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

IMPORT_EVERY_NAME = """
import clip_hf
assert clip_hf.__all__
for name in clip_hf.__all__:
    getattr(clip_hf, name)
print(clip_hf.__file__)
"""


def test_the_newest_change_is_this_version():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", changes, re.MULTILINE)
    assert versions[0] == PROJECT["version"]
    assert versions == sorted(versions, key=Version, reverse=True)
    assert clip_hf.__version__ == PROJECT["version"]


def test_every_dependency_has_a_public_pin_that_satisfies_it():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    odd = [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)]
    assert not odd, f"a pin is name==version, with neither a build nor a host: {odd}"

    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    extras = PROJECT["optional-dependencies"]
    # What `make install` installs: the extra `test` and those that it names.
    (own,) = (found for found in map(Requirement, extras["test"]) if found.extras)
    lines = [line for extra in ("test", *own.extras) for line in extras[extra]]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *lines]):
        name = canonicalize_name(requirement.name)
        if name != canonicalize_name(PROJECT["name"]):
            assert name in pins, f"{name} has no pin; install it and run `make constraints`"
            assert requirement.specifier.contains(pins[name]), f"{requirement}, but the pin is {pins[name]}"


@pytest.mark.slow
def test_the_wheel_is_whole_and_stands_alone(tmp_path):
    """Built from the source archive, unpacked into an empty environment, every public name imported there."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")

    environment = tmp_path / "environment"
    venv.create(environment)
    (packages,) = environment.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(packages)
    files = [file for file in (ROOT / "src" / "clip_hf").rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert {name for name in names if ".dist-info/" not in name} == {
        file.relative_to(ROOT / "src").as_posix() for file in files
    }
    assert "clip_hf/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)

    # The libraries are borrowed from the environment of this test, through a .pth file. Python reads no .pth files in
    # a folder that it knows through one, so an editable clip_hf over there stays out of sight.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    command = [environment / "bin" / "python", "-I", "-c", IMPORT_EVERY_NAME]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).is_relative_to(packages)
