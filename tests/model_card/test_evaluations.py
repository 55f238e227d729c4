"""Evaluations in a model's folder: on its page, if they are of its weights."""

import json

import pytest
import torch
from huggingface_hub import ModelCard

from clip_hf.model_card.evaluations import digest_weights, read_evaluations
from clip_hf.model_card.page import page_of_folder
from tests.hub.test_files import RESULTS as TRAINING
from tests.tiny_models import tiny_model

RESULTS = {
    "clothing": {
        "task": "zero-shot-image-classification",
        "arguments": {"data": "me/clothing:test", "limit": None},
        "metrics": {"top_1_accuracy": 0.51234, "top_5_accuracy": 0.9, "expected_calibration_error": 0.1},
    },
    "flickr": {
        "task": "image-text-retrieval",
        "arguments": {"data": "flickr8k/validation", "limit": 1000},
        "metrics": {"text_retrieval_recall@1": 0.25, "image_retrieval_recall@5": 0.5, "mean_recall": 0.4},
    },
    "probe": {
        "task": "image-classification",
        "arguments": {"data": "cifar10", "limit": None},
        "metrics": {"top_1_accuracy": 0.75},
    },
}


def write_results(folder, name, results):
    file = folder / "evaluations" / name / "results.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(results | {"weights_digest": digest_weights(folder)}), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    model = tiny_model("vit")
    model.save_pretrained(tmp_path)
    for name, results in RESULTS.items():
        write_results(tmp_path, name, results)
    return tmp_path


def test_they_are_tables_and_metadata_of_the_page(folder):
    page = page_of_folder(folder, "me/tiny")
    found = {
        (one.task_type, one.dataset_name, one.dataset_split, one.metric_name): one.metric_value
        for one in ModelCard(page).data.eval_results
    }
    assert found == {
        ("zero-shot-image-classification", "me/clothing", "test", "top-1"): 0.5123,
        ("zero-shot-image-classification", "me/clothing", "test", "top-5"): 0.9,
        ("image-text-retrieval", "flickr8k, 1,000 images", "validation", "text R@1"): 0.25,
        ("image-text-retrieval", "flickr8k, 1,000 images", "validation", "image R@5"): 0.5,
        ("image-classification", "cifar10", None, "top-1"): 0.75,
    }
    for line in (
        "| me/clothing, test | 51.2% | 90.0% |",
        "| flickr8k, 1,000 images, validation | 25.0% | 50.0% |",
        "Linear probe",
    ):
        assert line in page, line


@pytest.mark.parametrize(
    ("data", "name", "config", "split"),
    [
        ("me/pairs:train[:50%]", "me/pairs", None, "train[:50%]"),
        ("me/pairs:en:train", "me/pairs, en", "en", "train"),
        ("pairs:validation", "pairs", None, "validation"),
        ("photos/all:old/test", "all:old", None, "test"),
        ("/data/photos.csv", "photos.csv", None, None),
        ("~/photos/", "photos", None, None),
        (".", "model", None, None),
        ("../model/test", "model", None, "test"),
        ("/", "/", None, None),
        ("s3://bucket/{00..99}.tar", "{00..99}.tar", None, None),
        ("s3://bucket/pairs/validation/", "pairs", None, "validation"),
        ("s3://bucket", "bucket", None, None),
        ("https://me:secret@host/photos.csv?sig=secret", "photos.csv", None, None),
    ],
)
def test_data_is_called_by_its_name(data, name, config, split, tmp_path, monkeypatch):
    model = tmp_path / "model"
    tiny_model("vit").save_pretrained(model)
    write_results(model, "any", RESULTS["probe"] | {"arguments": {"data": data}})
    monkeypatch.chdir(model)
    (found,) = read_evaluations(model)
    assert (found.dataset_name, found.dataset_config, found.dataset_split) == (name, config, split)


def test_two_of_the_same_data_are_two(folder):
    write_results(folder, "plain", RESULTS["clothing"] | {"metrics": {"top_1_accuracy": 0.25}})
    page = page_of_folder(folder, "me/tiny")
    assert "| me/clothing, clothing, test | 51.2% | 90.0% |\n| me/clothing, plain, test | 25.0% |  |\n" in page
    assert "| cifar10 | 75.0% |" in page
    found = [one for one in ModelCard(page).data.eval_results if one.task_type == RESULTS["clothing"]["task"]]
    assert [(one.metric_name, one.metric_value) for one in found] == [("top-1", 0.5123), ("top-5", 0.9)]


@pytest.mark.parametrize(
    ("card", "changes", "lines"),
    [
        ({}, {}, ["| photos, test | 25.0% | 50.0% |"]),
        ({"evaluation_set": {"name": "Mine"}}, {}, ["| Mine | 25.0% | 50.0% |"]),
        (
            {},
            {"text_retrieval_recall@1": 0.3},
            ["| evaluation set of the training | 25.0% | 50.0% |", "| photos, test |"],
        ),
        ({}, {"data": "photos/train"}, ["| evaluation set of the training | 25.0% | 50.0% |", "| photos, train |"]),
    ],
)
def test_what_training_measured_of_the_same_data_is_there_once(card, changes, lines, tmp_path):
    """Not so where the data or a figure is another."""
    tiny_model("vit").save_pretrained(tmp_path)
    metrics = {"text_retrieval_recall@1": 0.25, "image_retrieval_recall@5": 0.5}
    training = {"evaluation": {f"eval_{name}": value for name, value in metrics.items()}}
    training["data_arguments"] = {"eval_data": "/data/photos/test"}
    (tmp_path / "results.json").write_text(json.dumps(TRAINING | training), encoding="utf-8")
    (tmp_path / "card.json").write_text(json.dumps(card), encoding="utf-8")
    changed = {name: changes.get(name, value) for name, value in metrics.items()}
    arguments = {"data": changes.get("data", "photos/test"), "limit": None}
    write_results(tmp_path, "photos", RESULTS["flickr"] | {"arguments": arguments, "metrics": changed})
    page = page_of_folder(tmp_path, "me/tiny")
    found = [line for line in page.splitlines() if line.endswith("| 50.0% |")]
    assert len(found) == len(lines) and all(line.startswith(start) for line, start in zip(found, lines, strict=True))
    assert len(ModelCard(page).data.eval_results) == 2 * len(lines)


def test_labelled_images_that_training_classified_are_there_once_too(folder):
    shares = {f"eval_zero_shot_{name}": share for name, share in RESULTS["clothing"]["metrics"].items()}
    training = {"evaluation": shares, "zero_shot_arguments": {"zero_shot_data": "me/clothing:test"}}
    (folder / "results.json").write_text(json.dumps(TRAINING | training), encoding="utf-8")
    page = page_of_folder(folder, "me/tiny")
    assert "| me/clothing, test | 51.2% | 90.0% |" in page and "set of the training" not in page


def test_other_weights_have_other_evaluations(folder, caplog):
    model = tiny_model("vit")
    with torch.no_grad():
        model.logit_scale.add_(1e-3)
    model.save_pretrained(folder)
    assert read_evaluations(folder) == []
    assert "is of other weights" in caplog.text


def test_other_files_are_refused(folder):
    (folder / "evaluations" / "probe" / "results.json").write_text(json.dumps({"metrics": {}}), encoding="utf-8")
    with pytest.raises(ValueError, match="has no arguments, task, weights_digest: it is not what"):
        read_evaluations(folder)


def test_without_weights_there_is_no_digest(tmp_path):
    assert digest_weights(tmp_path) is None and read_evaluations(tmp_path) == []
