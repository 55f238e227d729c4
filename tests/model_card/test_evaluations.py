"""Evaluations in a model's folder: on its page, if they are of its weights."""

import json

import pytest
import torch
from huggingface_hub import ModelCard

from clip_hf.model_card.evaluations import digest_weights, read_evaluations
from clip_hf.model_card.page import page_of_folder
from tests.tiny_models import tiny_model

RESULTS = {
    "clothing": {
        "task": "zero-shot-image-classification",
        "arguments": {"data": "data/clothing:test", "limit": None},
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


@pytest.fixture
def folder(tmp_path):
    model = tiny_model("vit")
    model.save_pretrained(tmp_path)
    for name, results in RESULTS.items():
        file = tmp_path / "evaluations" / name / "results.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(results | {"weights_digest": digest_weights(tmp_path)}), encoding="utf-8")
    return tmp_path


def test_they_are_tables_and_metadata_of_the_page(folder):
    page = page_of_folder(folder, "me/tiny")
    found = {
        (one.task_type, one.dataset_name, one.dataset_split, one.metric_name): one.metric_value
        for one in ModelCard(page).data.eval_results
    }
    assert found == {
        ("zero-shot-image-classification", "clothing", "test", "top-1"): 0.5123,
        ("zero-shot-image-classification", "clothing", "test", "top-5"): 0.9,
        ("image-text-retrieval", "flickr8k, 1,000 images", "validation", "text R@1"): 0.25,
        ("image-text-retrieval", "flickr8k, 1,000 images", "validation", "image R@5"): 0.5,
        ("image-classification", "cifar10", None, "top-1"): 0.75,
    }
    for line in (
        "| clothing, test | 51.2% | 90.0% |",
        "| flickr8k, 1,000 images, validation | 25.0% | 50.0% |",
        "Linear probe",
    ):
        assert line in page, line


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
