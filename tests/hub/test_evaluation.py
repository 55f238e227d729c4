"""The evaluation of a data set on the Hub, beside the same file here."""

import json
import os
import subprocess
import sys
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image
from huggingface_hub import HfApi

from tests.evaluation.tiny_evaluation import COLOURS, save_checkpoint, write_photos

ROOT = Path(__file__).parents[2]


def test_a_data_set_of_the_hub_gives_the_table_of_its_file(hub, this_process_uses_hub, tmp_path):
    photos, checkpoint = write_photos(tmp_path / "photos"), save_checkpoint("clip_hf", tmp_path / "model")
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in sorted(photos.glob("*.png"))]
    labels = [number % len(COLOURS) for number in range(len(images))]
    features = Features({"image": Image(), "label": ClassLabel(names=list(COLOURS))})
    near = tmp_path / "test.parquet"
    Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(near)
    api = HfApi()
    api.create_repo("tester/photos", repo_type="dataset")
    api.upload_file(
        path_or_fileobj=near, path_in_repo="data/test-00000.parquet", repo_id="tester/photos", repo_type="dataset"
    )
    found = {}
    for data in (str(near), "tester/photos:test"):
        folders = ["--output_dir", tmp_path / "out", "--cache_dir", tmp_path / "cache", "--num_workers", "0"]
        options = ["--model", checkpoint, "--data", data, "--label_column", "label", *folders]
        command = [sys.executable, "scripts/evaluate_zero_shot.py", *options]
        subprocess.run(command, cwd=ROOT, env=os.environ | hub.env, check=True, timeout=300)
        found[data] = json.loads((tmp_path / "out" / "results.json").read_text())
    near_table, far_table = found.values()
    assert far_table["num_images"] == len(images) and far_table["class_names"] == sorted(COLOURS)
    assert far_table["classes"] == near_table["classes"] and far_table["metrics"] == near_table["metrics"]
