"""A trained model and its export to transformers' CLIPModel score the same on real data, as the scripts print it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.evaluation.tiny_evaluation import run_script

ROOT = Path(__file__).parents[2]
RECIPE = {
    "architecture": "ViT-B/32",
    "config": {
        "projection_dim": 64,
        "text_config": {"hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 24},
        "vision_config": {"image_size": 32, "patch_size": 8, "hidden_size": 64, "num_hidden_layers": 2},
    },
    "vocab_size": 1024,
    "global_batch_size": 64,
    "max_steps": 400,
    "learning_rate": 0.001,
    "warmup_steps": 40,
    "save_strategy": "no",
    "use_cpu": True,
}
RECIPE["config"]["vision_config"] |= {"num_attention_heads": 1, "intermediate_size": 256}
# Two kernels round otherwise, which may swap two of thousands of captions that are nearly alike: it is compared apart.
MEAN_RANK = re.compile(r"[\d,]+\.\d$", re.MULTILINE)


@pytest.fixture(scope="module")
def layouts(test_data, tmp_path_factory):
    """One model, trained by the script on real pairs, in our layout and in transformers'."""
    folder = tmp_path_factory.mktemp("layouts")
    ours, theirs = folder / "ours", folder / "theirs"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"output_dir": str(ours)}))
    command = [
        sys.executable,
        "scripts/train.py",
        folder / "recipe.yaml",
        "--train_data",
        test_data / "flickr8k" / "train",
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    run_script("scripts/convert_checkpoint.py", ours, theirs, "--to", "transformers")
    classes = [json.loads((place / "config.json").read_text())["architectures"] for place in (ours, theirs)]
    assert classes == [["ClipHfModel"], ["CLIPModel"]]
    return ours, theirs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "data", "limit"),
    [
        ("zero_shot", "clothing/validation", None),
        ("zero_shot", "cifar10/test", 1000),
        ("retrieval", "flickr8k/validation", None),
    ],
)
def test_tables_are_identical(script, data, limit, layouts, test_data, tmp_path, capsys):
    printed, results = [], []
    for model in layouts:
        options = ["--model", model, "--data", test_data / data, "--output_dir", tmp_path / "out"]
        options += ["--limit", limit] if limit else []
        capsys.readouterr()
        run_script(f"scripts/evaluate_{script}.py", *options, "--cache_dir", tmp_path / "cache", "--num_workers", 0)
        printed.append(MEAN_RANK.sub("", capsys.readouterr().out))
        results.append(json.loads((tmp_path / "out" / "results.json").read_text()))
    assert printed[0] == printed[1]
    assert results[0]["num_images"] == (limit or {"clothing/validation": 341, "flickr8k/validation": 1000}[data])
    assert results[0].get("classes") == results[1].get("classes")
    ours, theirs = (result["metrics"] for result in results)
    for name in ours.keys() - {"expected_calibration_error"}:  # a mean of probabilities, which are rounded
        assert ours[name] == (pytest.approx(theirs[name], rel=1e-5) if "mean_rank" in name else theirs[name]), name
    if script == "retrieval":  # four times chance: there is something to compare
        assert ours["image_retrieval_recall@10"] > 4 * 10 / results[0]["num_images"]


@pytest.mark.slow
def test_batches_of_another_size_find_the_same(layouts, test_data, tmp_path):
    """Recall to the last image; ranks of captions that are nearly alike may change places."""
    found = []
    for batch_size in (16, 100, 1000):
        folders = ["--output_dir", tmp_path / "out", "--cache_dir", tmp_path / str(batch_size), "--num_workers", 0]
        options = ["--model", layouts[0], "--data", test_data / "flickr8k" / "validation", "--batch_size", batch_size]
        run_script("scripts/evaluate_retrieval.py", *options, *folders)
        found.append(json.loads((tmp_path / "out" / "results.json").read_text())["metrics"])
    for other in found[1:]:
        for name, value in found[0].items():
            assert other[name] == (pytest.approx(value, rel=1e-5) if "mean_rank" in name else value), name
