"""The command that trains: what it leaves, and that every launcher leaves the same."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

import clip_hf  # noqa: F401  registers the Auto classes

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "train.py"
RECIPE = ROOT / "scripts" / "recipes" / "shapes.yaml"
BATCH_SIZE = 40
OPTIONS = ["--max_steps", "2", "--eval_steps", "2", "--logging_steps", "1", "--disable_tqdm", "true"]
# What zero gradients make of Adam's steps is noise: see test_engines.py.
OPTIONS += ["--dataloader_num_workers", "0", "--optim", "sgd", "--learning_rate", "0.02", "--warmup_steps", "0"]


def launch(launcher: list[str], folder: Path, *options: str) -> dict[str, torch.Tensor]:
    """The weights that a launched training leaves."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PATH": path}
    command = [*launcher, SCRIPT, RECIPE, *OPTIONS, *options, "--output_dir", folder]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return load_file(folder / "model.safetensors")


def test_a_recipe_leaves_a_checkpoint_that_the_auto_classes_open(tmp_path):
    spec = importlib.util.spec_from_file_location("train", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    sys.modules["train"] = script  # where dataclasses look for their module
    spec.loader.exec_module(script)
    script.main([str(RECIPE), *OPTIONS, "--global_batch_size", "8", "--output_dir", str(tmp_path)])

    model, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert processor.image_processor.crop_size["height"] == model.config.vision_config.image_size == 64
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["training"]["num_pairs_seen"] == 16 and results["evaluation"]["eval_loss"] > 0
    assert (tmp_path / "curves.png").exists()

    again = tmp_path / "again"
    script.main([*OPTIONS, "--model", str(tmp_path), "--train_data", "shapes", "--output_dir", str(again)])
    assert json.loads((again / "results.json").read_text())["model"]["projection_dim"] == 64


@pytest.mark.slow
def test_every_launcher_leaves_the_same_weights(tmp_path):
    """One command line; the chunks are the groups that batch norm sees on two processes."""
    batch = ("--global_batch_size", str(BATCH_SIZE), "--grad_cache_chunk_size", str(BATCH_SIZE // 2))
    expected = launch([sys.executable], tmp_path / "python", *batch)
    two = ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launchers = {
        "torchrun": (["torchrun", "--standalone", "--nproc_per_node", "2"],),
        "accelerate": (["accelerate", "launch", "--multi_gpu", *two],),
        "deepspeed-zero2": (["deepspeed", "--num_accelerators", "2"], "--deepspeed", "scripts/deepspeed/zero2.json"),
        "deepspeed-zero3": (["deepspeed", "--num_accelerators", "2"], "--deepspeed", "scripts/deepspeed/zero3.json"),
    }
    for name, (launcher, *options) in launchers.items():
        found = launch(launcher, tmp_path / name, *options, *batch)
        assert found.keys() == expected.keys()
        for key, weight in expected.items():
            if not key.endswith(("running_mean", "running_var", "num_batches_tracked")):
                assert (found[key] - weight).abs().max() < 1e-5, (name, key)
