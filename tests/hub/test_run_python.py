"""The clean processes of the Hub tests: with clip_hf, or surely without it."""

import pytest

# What an editable install may leave behind: a folder on the path, or a hook among the finders.
EDITABLE_HOOK = """
import importlib.util, sys

class EditableFinder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "clip_hf":
            return importlib.util.spec_from_file_location(name, {path!r})

sys.meta_path.insert(0, EditableFinder)
"""


@pytest.mark.parametrize("installed_by", ["path", "hook"])
def test_clip_hf_is_there_or_not_as_asked(run_python, tmp_path, installed_by):
    package = tmp_path / ("clip_hf" if installed_by == "path" else "hidden") / "__init__.py"
    package.parent.mkdir()
    package.write_text("where = 'here'\n")
    if installed_by == "hook":
        (tmp_path / "sitecustomize.py").write_text(EDITABLE_HOOK.format(path=str(package)))
    env = {"PYTHONPATH": str(tmp_path)}
    assert run_python("import clip_hf; print(clip_hf.where)", env, with_clip_hf=True) == "here\n"
    with pytest.raises(RuntimeError, match="No module named 'clip_hf'"):
        run_python("import clip_hf", env, with_clip_hf=False)
    others = "import importlib.metadata, json, numpy; print(importlib.metadata.version('torch').split('.')[0])"
    assert int(run_python(others, env, with_clip_hf=False)) >= 2


def test_a_failure_shows_what_the_process_said(run_python):
    code = "import sys; print('on stdout'); sys.stderr.write('on stderr'); sys.exit(3)"
    with pytest.raises(RuntimeError, match=r"\(3\)[\s\S]*on stderr[\s\S]*on stdout"):
        run_python(code, {}, with_clip_hf=False)


def test_the_process_starts_in_an_empty_folder_with_the_settings_of_the_hub(run_python, hub):
    code = "import os; print(os.listdir(), os.environ['HF_ENDPOINT'], os.environ['HF_TOKEN'])"
    assert run_python(code, hub.env, with_clip_hf=False) == f"[] {hub.url} {hub.token}\n"
