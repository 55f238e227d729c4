"""What a model was made of: from its source's name, from its folder, and on the page of what it was converted to."""

import json

import pytest

from clip_hf.model_card.origins import base_model_of, record_conversion
from clip_hf.model_card.page import page_of_folder
from tests.hub.hub_card import check_card
from tests.tiny_models import tiny_model


def test_repositories_are_known_by_name_and_folders_by_their_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert base_model_of("openai/clip-vit-base-patch32") == "openai/clip-vit-base-patch32"
    (tmp_path / "mine" / "clip").mkdir(parents=True)
    (tmp_path / "ViT-B-32.pt").touch()
    for source in ("mine/clip", "ViT-B-32.pt", "clip", "a/b/c"):
        assert base_model_of(source) is None, source
    (tmp_path / "card.json").write_text('{"base_model": "another/clip"}')
    assert base_model_of("") is None
    (tmp_path / "mine" / "clip" / "results.json").write_text('{"base_model": "them/clip"}')
    assert base_model_of("mine/clip") == "them/clip"
    (tmp_path / "mine" / "clip" / "card.json").write_text('{"base_model": "us/clip"}')
    assert base_model_of("mine/clip") == "us/clip"
    (tmp_path / "mine" / "clip" / "card.json").write_text("{")
    assert base_model_of("mine/clip") is None


@pytest.mark.parametrize("source", ["them/clip", "folder"])
def test_a_conversion_is_on_the_page(source, tmp_path):
    model = tmp_path / "model"
    tiny_model("vit").save_pretrained(model)
    place = source if "/" in source else str(tmp_path / source)
    if place != source:
        (tmp_path / source).mkdir()
    record_conversion(model, place, "transformers", "float16", "differ by at most 1e-07 from those of transformers 5")
    page = page_of_folder(model, "me/clip")
    assert f"| source | {source} (transformers) |\n| dtype | float16 |\n| features | differ by at most 1e-07" in page
    assert check_card(page).metadata.get("base_model") == (source if "/" in source else None)
    assert str(tmp_path) not in json.dumps(json.loads((model / "card.json").read_text()))
