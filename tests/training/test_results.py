"""The file that a run leaves: what was asked for, without what is secret."""

import json
import sys
from dataclasses import dataclass

import pytest

from tests.training.test_trainer import make_trainer


@dataclass
class Options:
    vocab_size: int


@pytest.mark.parametrize(
    "token", [["--hub_token", "hf_SECRET"], ["--hub_token=hf_SECRET"], ["--hub-tok", "hf_SECRET"]]
)
def test_the_command_and_its_options_are_written_but_no_token(token, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/train.py", "a recipe.yaml", *token, "--bf16"])
    trainer = make_trainer(tmp_path, max_steps=1, hub_token="hf_SECRET")
    trainer.results.add_options(model_arguments=Options(602))
    trainer.train()
    written = (tmp_path / "results.json").read_text()
    results = json.loads(written)
    assert results["command"].startswith("scripts/train.py 'a recipe.yaml' --hub")
    assert results["command"].endswith("*** --bf16") and "SECRET" not in written
    assert results["model_arguments"] == {"vocab_size": 602}
    assert results["training"]["steps"] == results["training"]["max_steps"] == 1
