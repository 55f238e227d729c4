"""What evaluations refuse before they begin, and what they write."""

import json
import os

import pytest

from clip_hf.evaluation.setup import EvaluationArguments, write_results
from tests.evaluation.tiny_evaluation import open_cache, open_photos, save_checkpoint, write_photos


def test_the_folder_of_a_model_keeps_the_results_of_its_training(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a model's folder.* write to .*evaluations/NAME"):
        EvaluationArguments("me/clip", "photos", tmp_path)
    EvaluationArguments("me/clip", "photos", tmp_path / "evaluations" / "photos")


def test_results_replace_others_as_a_whole_or_not_at_all(tmp_path):
    photos = write_photos(tmp_path / "photos")
    cache = open_cache(save_checkpoint("clip_hf", tmp_path / "model"), tmp_path / "cache")
    name = os.fsdecode(b"caf\xe9.png")
    (photos / name).write_bytes(b"no image")
    with open(photos / "metadata.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"file_name": name, "captions": ["a"], "label_name": "red"}) + "\n")
    images = cache.embed_images(open_photos(photos))
    args = EvaluationArguments(str(tmp_path / "model"), "https://me:secret@host/photos.csv?sig=secret", tmp_path)
    write_results(args, "any", cache, images, {"share": 0.5})
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert (found["share"], found["num_images"], found["broken"][-1]["id"]) == (0.5, 12, name)
    assert found["arguments"]["data"] == "https://host/photos.csv"
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(args, "any", cache, images, {"share": float("nan")})
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == found
    assert not list(tmp_path.glob("*partial*"))
