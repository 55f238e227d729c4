"""The command that renders model cards, of facts and of folders."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from clip_hf import ClipHfConfig
from tests.hub.test_files import RESULTS
from tests.tiny_models import tiny_config

SCRIPT = Path(__file__).parents[2] / "scripts" / "render_model_cards.py"


@pytest.fixture
def render(monkeypatch, capsys):
    def run(*arguments) -> list[Path]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return [Path(line) for line in capsys.readouterr().out.splitlines()]

    return run


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "outputs" / "tiny"
    tiny_config("vit").save_pretrained(folder)
    (folder / "curves.png").write_bytes(b"a picture")
    (folder / "card.json").write_text(json.dumps({"license": "mit", "summary": "A test."}))
    return folder


def test_a_folder_gets_its_readme(render, folder):
    assert render(folder) == [folder / "README.md"]
    assert "license: mit" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("by hand")
    render(folder)
    assert (folder / "README.md").read_text() == "by hand"


def test_a_trained_model_gets_a_card_of_its_own(render, folder, tmp_path):
    assert render(folder, "--to", tmp_path / "tiny-v1.0") == [tmp_path / "tiny-v1.0.md"]
    page = (tmp_path / "tiny-v1.0.md").read_text()
    assert "A test." in page and "path/to/tiny-v1.0" in page
    assert str(tmp_path) not in page + (tmp_path / "tiny-v1.0.json").read_text()
    assert (tmp_path / "tiny-v1.0.png").read_bytes() == b"a picture"
    facts = json.loads((tmp_path / "tiny-v1.0.json").read_text())
    assert ClipHfConfig(**facts["config"]).vision_config.image_size == 32 and facts["curves"] == "tiny-v1.0.png"
    (tmp_path / "tiny-v1.0.md").unlink()
    render(tmp_path / "tiny-v1.0.json")
    assert (tmp_path / "tiny-v1.0.md").read_text() == page


def test_a_card_may_begin_a_new_folder(render, folder, tmp_path):
    assert render(folder, "--to", tmp_path / "new" / "tiny") == [tmp_path / "new" / "tiny.md"]


def test_a_path_that_is_not_there_is_named(render, folder, capsys):
    with pytest.raises(SystemExit):
        render(folder, folder / "tiny.json")
    assert f"there is no {folder / 'tiny.json'}: name JSON files" in capsys.readouterr().err
    assert not (folder / "README.md").exists()


def test_a_new_training_leaves_no_fact_of_the_one_before(render, folder, tmp_path):
    before = {"base_model": "them/clip", "datasets": ["them/pairs"], "conversion": {"source": "them/clip"}}
    (tmp_path / "tiny.json").write_text(json.dumps({"intended_use": "Tests.", "widget": [{"src": "a"}]} | before))
    (folder / "results.json").write_text(json.dumps(RESULTS | {"datasets": ["me/pairs"]}))
    render(folder, "--to", tmp_path / "tiny")
    facts = json.loads((tmp_path / "tiny.json").read_text())
    assert (facts["intended_use"], facts["widget"]) == ("Tests.", [{"src": "a"}])
    assert {name: facts[name] for name in before if name in facts} == {"datasets": ["me/pairs"]}


@pytest.mark.parametrize("arguments", [[], ["nowhere"], ["a", "b"]])
def test_one_folder_makes_one_card(render, arguments, capsys):
    with pytest.raises(SystemExit):
        render(*arguments, "--to", "tiny")
    assert "--to needs one folder" in capsys.readouterr().err
