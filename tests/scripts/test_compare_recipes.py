import json
import sys

import pytest
import yaml

from scripts import compare_recipes
from scripts.compare_recipes import merge
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
    assert comparison["batches of 4"]["command"].endswith(" ".join(OPTIONS))
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


@pytest.mark.parametrize(
    ("options", "more", "changes"),
    [
        ({"seed": 2}, [], {}),
        ({"seed": 1}, ["--max_steps", "3"], {}),
        ({"seed": 1}, [], {"training": {"steps": 1, "max_steps": 2}}),
        ({"seed": 1}, [], {"command": "of another version"}),
        ({"seed": 1}, [], None),
    ],
)
def test_only_the_same_training_at_its_end_is_not_done_again(options, more, changes, tmp_path, monkeypatch):
    class Trained:
        returncode = 0

        def __init__(self, command, check):
            whole = {"command": " ".join(command[1:]), "training": {"steps": 2, "max_steps": 2}}
            (tmp_path / "run" / "results.json").write_text(json.dumps(whole))

    monkeypatch.setattr(compare_recipes.subprocess, "run", Trained)
    found = compare_recipes.train({"seed": 1}, tmp_path / "run", [])
    (tmp_path / "run" / "checkpoint-1").mkdir()
    assert compare_recipes.train({"seed": 1}, tmp_path / "run", []) == found
    if changes is None:
        (tmp_path / "run" / "results.json").unlink()
    else:
        (tmp_path / "run" / "results.json").write_text(json.dumps(found | changes))
    compare_recipes.train(options, tmp_path / "run", more)
    assert not (tmp_path / "run" / "checkpoint-1").exists()


def test_mistakes_are_told_in_a_line(tmp_path, monkeypatch):
    variants = tmp_path / "variants.yaml"
    variants.write_text("variants: {one: {}}")
    monkeypatch.setattr(sys, "argv", ["compare", str(variants), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="lacks recipe"):
        compare_recipes.main()
    monkeypatch.setattr(compare_recipes.subprocess, "run", lambda command, check: Failed)
    with pytest.raises(SystemExit, match="ended with code 3"):
        compare_recipes.train({}, tmp_path / "run", [])


def test_a_variant_changes_single_fields_of_a_configuration():
    base = {"architecture": "RN50", "config": {"projection_dim": 64, "vision_config": {"width": 8, "image_size": 64}}}
    assert merge(base, {"config": {"vision_config": {"width": 16}}}) == {
        "architecture": "RN50",
        "config": {"projection_dim": 64, "vision_config": {"width": 16, "image_size": 64}},
    }
    other = {"architecture": "ViT-B/32", "config": {"projection_dim": 32}}
    assert merge(base, other) == other
