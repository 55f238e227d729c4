"""The file that a run leaves: what was asked for, without what is secret."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import TrainerCallback
from transformers.utils import logging

from clip_hf import ClipHfModel
from clip_hf.model_card.trainings import facts_of_training
from tests.tiny_models import tiny_model
from tests.tiny_pairs import TinyPairs
from tests.training.test_trainer import make_trainer


def test_the_figures_are_those_of_the_best_checkpoint_that_was_saved(tmp_path):
    """Evaluated at 1 to 4, saved at 2 and 4: the best of all, step 3, is in no checkpoint."""
    values = {1: 0.1, 2: 0.5, 3: 0.9, 4: 0.4}
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "value"}
    trainer = make_trainer(tmp_path, eval_pairs=TinyPairs(tiny_model("vit").config, 8), **options)
    trainer.compute_metrics = lambda prediction: {"loss": 1.0, "value": values[trainer.state.global_step]}
    trainer.train()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["best"]["checkpoint"] == str(tmp_path / "checkpoint-2") and results["best"]["value"] == 0.5
    assert (results["evaluation"]["step"], results["evaluation"]["eval_value"]) == (2, 0.5)


@pytest.mark.parametrize("broken", ["plot_curves", "collect_results"])
def test_a_report_that_fails_does_not_lose_the_model(broken, tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("out of ink")

    monkeypatch.setattr(f"clip_hf.training.results.{broken}", fail)
    logging.enable_propagation()
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    trainer.save_model()
    logging.disable_propagation()
    there = {"results.json": broken != "collect_results", "curves.png": broken != "plot_curves"}
    for name, is_there in there.items():
        assert (tmp_path / name).exists() == is_there
        assert (f"{name} is not" in caplog.text) != is_there
    assert "out of ink" in caplog.text and (tmp_path / "model.safetensors").exists()


@dataclass
class Options:
    vocab_size: int
    train_data: tuple[str, ...] = ()


@pytest.mark.parametrize(
    "token", [["--hub_token", "hf_SECRET"], ["--hub_token=hf_SECRET"], ["--hub-tok", "hf_SECRET"]]
)
def test_the_command_and_its_options_are_written_but_no_token(token, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/train.py", "--local_rank=0", "a recipe.yaml", *token, "--bf16"])
    trainer = make_trainer(tmp_path, max_steps=1, hub_token="hf_SECRET")
    trainer.results.add_options(model_arguments=Options(602))
    trainer.train()
    written = (tmp_path / "results.json").read_text()
    results = json.loads(written)
    assert results["command"].startswith("scripts/train.py 'a recipe.yaml' --hub")
    assert results["command"].endswith("*** --bf16") and "SECRET" not in written
    assert results["model_arguments"]["vocab_size"] == 602
    assert results["training"]["steps"] == results["training"]["max_steps"] == 1


def test_places_of_data_are_written_but_nothing_that_opens_them(tmp_path, monkeypatch):
    url, signed = "https://me:SECRET@host/a.csv", "s3://bucket/b.tar?X-Amz-Signature=SECRET'S"
    monkeypatch.setattr(sys, "argv", ["scripts/train.py", "--train_data", url, signed])
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.results.add_options(data_arguments=Options(602, (url, signed)))
    trainer.results.facts["data"] = {url: {"read": 8, "broken": 0}}
    trainer.train()
    written = (tmp_path / "results.json").read_text()
    results, places = json.loads(written), ["https://host/a.csv", "s3://bucket/b.tar"]
    assert "SECRET" not in written
    assert results["command"] == f"scripts/train.py --train_data {' '.join(places)}"
    assert results["data_arguments"]["train_data"] == places
    assert results["data"] == {places[0]: {"read": 8, "broken": 0}}


def test_what_a_run_took_is_not_said_of_one_that_goes_on(tmp_path):
    """Its clock begins anew."""
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    for resumed_at, checkpoint in ((0, None), (1, str(tmp_path / "checkpoint-1"))):
        shutil.rmtree(tmp_path / "checkpoint-2", ignore_errors=True)
        make_trainer(tmp_path, **options).train(resume_from_checkpoint=checkpoint)
        results = json.loads((tmp_path / "results.json").read_text())
        assert results["resumed_at_step"] == resumed_at
        facts = facts_of_training(results, {})
        assert ("time" in facts["training"]) is (checkpoint is None) and facts["training"]["pairs seen"] == "16"
        assert facts["num_pairs_seen"] == 16


class DeleteFolder(TrainerCallback):
    def on_step_end(self, args, state, control, **objects):
        shutil.rmtree("outputs/gone")


def test_a_folder_is_no_repository_even_if_it_is_gone(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    for card, callbacks in (("{}", [DeleteFolder()]), ("{", [])):
        tiny_model("vit").save_pretrained("outputs/gone")
        Path("outputs/gone/card.json").write_text(card)
        model = ClipHfModel.from_pretrained("outputs/gone")
        logging.enable_propagation()
        make_trainer("run", model, callbacks=callbacks, max_steps=1).train()
        logging.disable_propagation()
        results = json.loads(Path("run/results.json").read_text())
        assert results["base_model"] is None
        assert "num_pairs_seen" not in facts_of_training(results, {})  # it knew something before
    assert "card.json is not JSON" in caplog.text
