import json
import subprocess
import sys

import pytest
from PIL import Image
from transformers import AutoModel, AutoProcessor

from clip_hf import ClipHfModel


def run_demo(folder, *options):
    command = [sys.executable, "scripts/demo.py", "--output_dir", str(folder), *options]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout, json.loads((folder / "results.json").read_text())


def test_demo_leaves_a_model_a_table_and_an_image(tmp_path):
    printed, results = run_demo(tmp_path / "demo", "--num_steps", "2", "--num_images", "6")
    assert results["num_classes"] == 480
    assert results["chance"]["top-1"] == pytest.approx(1 / 480)
    for name, share in results["unseen"].items():
        assert 0 <= share <= 1
        assert f"{name:10}{share:>9.1%}{results['chance'][name]:>9.1%}" in printed
    assert Image.open(tmp_path / "demo" / "demo.png").size[0] > 1000
    # The evaluation scripts ran on the images of unseen combinations, and the model's folder holds what they found.
    evaluations = {
        file.parent.name: file for file in (tmp_path / "demo" / "model" / "evaluations").glob("*/results.json")
    }
    assert set(evaluations) == {"retrieval", "zero_shot", "linear_probe"}
    for name, file in evaluations.items():
        found = json.loads(file.read_text())
        assert (found["num_images"], found["num_broken"]) == (120, 0) and list(file.parent.glob("*.png"))
        of = "image_retrieval_recall@5" if name == "retrieval" else "top_1_accuracy"
        assert f"{found['metrics'][of]:.2%}" in printed
    assert type(AutoModel.from_pretrained(tmp_path / "demo" / "model")) is ClipHfModel
    AutoProcessor.from_pretrained(tmp_path / "demo" / "model")
    # The three lines that it prints work as they stand.
    usage = printed[printed.index("import clip_hf") :]
    subprocess.run([sys.executable, "-c", usage], check=True, capture_output=True)


@pytest.mark.slow
def test_demo_names_unseen_combinations(tmp_path):
    _, results = run_demo(tmp_path / "demo")
    # Which shapes it confuses is a matter of rounding: three runs on one and two threads named 80 to 92 % rightly.
    assert results["unseen"]["top-1"] >= 0.7 and results["unseen"]["top-5"] >= 0.95
