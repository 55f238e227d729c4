import json
import sys

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
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 10_000
    best = max(comparison, key=lambda name: comparison[name]["evaluations"][-1]["mean_recall"])
    table = [line for line in capsys.readouterr().out.splitlines() if "mean recall" in line]
    assert len(table) == 2 and table[0].startswith(best)

    monkeypatch.setattr(compare_recipes, "TRAIN", tmp_path / "nothing")
    compare_recipes.main()
