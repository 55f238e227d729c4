"""A model and its export to transformers' CLIPModel score the same on real data, as the scripts print it."""

import json

import pytest

from tests.evaluation.tiny_evaluation import run_script, save_checkpoint


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """One model of random weights, in our layout and in transformers'."""
    folder = tmp_path_factory.mktemp("layouts")
    ours, theirs = save_checkpoint("clip_hf", folder / "ours"), folder / "theirs"
    run_script("scripts/convert_checkpoint.py", ours, theirs, "--to", "transformers")
    classes = [json.loads((place / "config.json").read_text())["architectures"] for place in (ours, theirs)]
    assert classes == [["ClipHfModel"], ["CLIPModel"]]
    return ours, theirs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "data", "limit"),
    [
        ("zero_shot", "clothing/validation", 200),
        ("zero_shot", "cifar10/test", 300),
        ("retrieval", "flickr8k/validation", 100),
    ],
)
def test_tables_are_identical(script, data, limit, layouts, test_data, tmp_path, capsys):
    printed, results = [], []
    for model in layouts:
        options = ["--model", model, "--data", test_data / data, "--limit", limit, "--output_dir", tmp_path / "out"]
        capsys.readouterr()
        run_script(f"scripts/evaluate_{script}.py", *options, "--cache_dir", tmp_path / "cache", "--num_workers", 0)
        printed.append(capsys.readouterr().out)
        results.append(json.loads((tmp_path / "out" / "results.json").read_text()))
    assert printed[0] == printed[1]
    assert results[0]["num_images"] == limit and results[0].get("classes") == results[1].get("classes")
    ours, theirs = (result["metrics"] for result in results)
    for name in ours.keys() - {"expected_calibration_error"}:  # a mean of probabilities, which are rounded
        assert ours[name] == theirs[name]
