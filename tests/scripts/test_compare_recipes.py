import json
import sys
from pathlib import Path

import pytest
import yaml

from scripts import compare_recipes
from tests.scripts.test_train import OPTIONS, RECIPE


@pytest.mark.timeout(300)
def test_variants_are_trained_once_and_compared(tmp_path, monkeypatch, capsys):
    variants = tmp_path / "variants.yaml"
    content = {
        "recipe": str(RECIPE),
        "options": {"global_batch_size": 8},
        "variants": {"as it is": {}, "batches of 4": {"global_batch_size": 4}},
    }
    variants.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(sys, "argv", ["compare", str(variants), "--output", str(tmp_path / "out"), *OPTIONS])
    compare_recipes.main()

    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())["variants"]
    assert [variant["evaluations"][-1]["pairs"] for variant in comparison.values()] == [16, 8]
    results = json.loads((tmp_path / "out" / "batches_of_4" / "results.json").read_text())
    assert comparison["batches of 4"]["evaluations"][-1]["mean_recall"] == results["evaluation"]["eval_mean_recall"]
    command = comparison["batches of 4"]["command"]
    assert command.startswith("scripts/train.py ") and command.endswith(" ".join(OPTIONS))
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 10_000
    best = max(comparison, key=lambda name: comparison[name]["evaluations"][-1]["mean_recall"])
    table = [line for line in capsys.readouterr().out.splitlines() if "mean recall" in line]
    assert len(table) == 2 and table[0].startswith(best)

    trained = []
    monkeypatch.setattr(compare_recipes.subprocess, "run", lambda command, check: trained.append(command) or Failed)
    compare_recipes.main()
    assert not trained


class Failed:
    returncode = 3


class Trained:
    """A training that writes what it was asked."""

    returncode, commands = 0, []

    def __init__(self, command, check):
        self.commands.append(command)
        whole = {"command": " ".join(command[1:]), "training": {"steps": 2, "max_steps": 2}}
        (Path(command[2]).parent / "results.json").write_text(json.dumps(whole))
        (Path(command[2]).parent / "model.safetensors").touch()


@pytest.mark.parametrize("changes", [{"training": {"steps": 1, "max_steps": 2}}, None, "no weights"])
def test_only_a_training_that_came_to_its_end_is_not_continued(changes, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_recipes.subprocess, "run", Trained)
    monkeypatch.setattr(Trained, "commands", [])
    found = compare_recipes.train({"seed": 1}, tmp_path / "run", [])
    assert compare_recipes.train({"seed": 1}, tmp_path / "run", []) == found
    assert len(Trained.commands) == 1
    (tmp_path / "run" / "checkpoint-1").mkdir()
    if changes is None:
        (tmp_path / "run" / "results.json").unlink()
    elif changes == "no weights":
        (tmp_path / "run" / "model.safetensors").unlink()
    else:
        (tmp_path / "run" / "results.json").write_text(json.dumps(found | changes))
    compare_recipes.train({"seed": 1}, tmp_path / "run", [])
    assert Trained.commands[1][-2:] == ["--resume_from_checkpoint", "true"]
    assert (tmp_path / "run" / "checkpoint-1").exists()


@pytest.mark.parametrize(("options", "more"), [({"seed": 2}, []), ({"seed": 1}, ["--max_steps", "3"])])
def test_another_training_is_neither_taken_for_this_one_nor_deleted(options, more, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_recipes.subprocess, "run", Trained)
    compare_recipes.train({"seed": 1}, tmp_path / "run", [])
    with pytest.raises(SystemExit, match="run holds another training, or one of other options"):
        compare_recipes.train(options, tmp_path / "run", more)
    assert (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize("option", ["--output_dir", "--output-dir", "--output_d"])
def test_a_folder_of_trainings_is_named_by_the_commands_own_option(option, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare", "variants.yaml", option, str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        compare_recipes.main()
    assert "each variant has a folder of its own: name that of all with --output" in capsys.readouterr().err


def test_mistakes_are_told_in_a_line(tmp_path, monkeypatch):
    variants = tmp_path / "variants.yaml"
    variants.write_text("variants: {one: {}}")
    monkeypatch.setattr(sys, "argv", ["compare", str(variants), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="lacks recipe"):
        compare_recipes.main()
    variants.write_text("{recipe: nowhere.yaml, variants: {one: {}}}")
    with pytest.raises(SystemExit, match=r"there is no recipe .*nowhere\.yaml"):
        compare_recipes.main()
    monkeypatch.setattr(compare_recipes.subprocess, "run", lambda command, check: Failed)
    with pytest.raises(SystemExit, match="ended with code 3"):
        compare_recipes.train({}, tmp_path / "run", [])
