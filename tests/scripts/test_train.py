"""The command that trains: what it leaves, and that every launcher leaves the same."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from clip_hf import ClipHfConfig, ClipHfImageProcessor, ClipHfModel, ClipHfProcessor, ClipHfTokenizer
from clip_hf.conversion.reading import read_checkpoint
from clip_hf.conversion.writing import write_checkpoint
from clip_hf.data.shapes import UNSEEN, ShapesDataset
from tests.tiny_models import TEXT, VISION

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


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("train", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    sys.modules["train"] = script  # where dataclasses look for their module
    spec.loader.exec_module(script)
    return script


def test_a_recipe_leaves_a_checkpoint_that_the_auto_classes_open(script, tmp_path):
    script.main([str(RECIPE), *OPTIONS, "--global_batch_size", "8", "--output_dir", str(tmp_path)])

    model, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert processor.image_processor.crop_size["height"] == model.config.vision_config.image_size == 64
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["training"]["num_pairs_seen"] == 16 and results["evaluation"]["eval_loss"] > 0
    assert (tmp_path / "curves.png").exists()
    assert results["model_arguments"]["vocab_size"] == 602 and results["data_arguments"]["train_data"] == ["shapes"]

    again = tmp_path / "again"
    script.main([*OPTIONS, "--model", str(tmp_path), "--train_data", "shapes", "--output_dir", str(again)])
    assert json.loads((again / "results.json").read_text())["model"]["projection_dim"] == 64


@pytest.mark.gpu
def test_a_gpu_trains_and_evaluates_in_bf16_and_compiled(tmp_path):
    options = ["--max_steps", "300", "--eval_steps", "300", "--bf16", "--torch_compile", "--disable_tqdm", "true"]
    # In a process of its own: transformers leaves TF32 on where it compiles.
    subprocess.run([sys.executable, SCRIPT, RECIPE, *options, "--output_dir", tmp_path / "model"], check=True)
    results = json.loads((tmp_path / "model" / "results.json").read_text())
    assert results["training"]["device"].startswith("cuda") and results["evaluation"]["eval_mean_recall"] > 0.1

    dataset = tmp_path / "shapes"
    ShapesDataset(UNSEEN).write(dataset, range(len(UNSEEN)))
    evaluate = [sys.executable, ROOT / "scripts" / "evaluate_retrieval.py", "--model", tmp_path / "model"]
    evaluate += ["--data", dataset, "--cache_dir", tmp_path / "cache"]
    found = {}
    for device, dtype in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")):
        folder = tmp_path / f"{device}-{dtype}"
        subprocess.run([*evaluate, "--device", device, "--dtype", dtype, "--output_dir", folder], check=True)
        found[folder.name] = json.loads((folder / "results.json").read_text())["metrics"]["mean_recall"]
    assert found["cuda-float32"] == pytest.approx(found["cpu-float32"], abs=0.01)
    assert found["cuda-bfloat16"] == pytest.approx(found["cpu-float32"], abs=0.05)


@pytest.fixture
def checkpoint(tmp_path):
    """A small ViT with its processor."""
    tokenizer = ClipHfTokenizer.train(["a red circle", "a blue heart"], vocab_size=560, context_length=16)
    text_config = TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    config = ClipHfConfig(text_config=text_config, vision_config=VISION["vit"], projection_dim=32)
    size = config.vision_config.image_size
    ClipHfModel(config).save_pretrained(tmp_path / "own")
    ClipHfProcessor(ClipHfImageProcessor(size=size, crop_size=size), tokenizer).save_pretrained(tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.parametrize("layout", ["clip_hf", "transformers", "open_clip"])
def test_a_checkpoint_of_any_layout_is_trained_further(layout, script, checkpoint, tmp_path):
    """With a rate of zero, it comes out as it went in; at another resolution, with as many positions as that takes."""
    write_checkpoint(read_checkpoint(str(checkpoint)), tmp_path / "source", layout)
    for size, grid in ((32, 4), (64, 8)):
        arguments = [
            "--model",
            str(tmp_path / "source"),
            "--train_data",
            "shapes",
            "--output_dir",
            str(tmp_path / f"out-{size}"),
        ]
        arguments += ["--max_steps", "1", "--per_device_train_batch_size", "4", "--learning_rate", "0"]
        script.main([*arguments, "--image_size", str(size), "--warmup_steps", "0", "--disable_tqdm", "true"])
        found, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / f"out-{size}", checkpoint))
        positions = "vision_model.embeddings.position_embedding"
        assert found[positions].shape[0] == 1 + grid**2
        for name, tensor in before.items():
            assert torch.equal(found[name], tensor) or (size == 64 and name == positions), name
        processor = AutoProcessor.from_pretrained(tmp_path / f"out-{size}")
        assert processor.image_processor.crop_size["height"] == size


def test_an_adapter_is_trained_saved_and_merged(script, checkpoint, tmp_path):
    arguments = ["--model", str(checkpoint), "--train_data", "shapes", "--output_dir", str(tmp_path / "out")]
    arguments += ["--max_steps", "2", "--per_device_train_batch_size", "4", "--warmup_steps", "0"]
    script.main([*arguments, "--lora_rank", "2", "--disable_tqdm", "true"])
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    found, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", checkpoint))
    assert found.keys() == before.keys()
    assert {name for name in found if not torch.equal(found[name], before[name])}
    with pytest.raises(SystemExit, match="name one with model"):
        script.main(["--train_data", "shapes", "--output_dir", str(tmp_path / "new"), "--lora_rank", "2"])


@pytest.fixture
def photos(tmp_path):
    """A folder as a new user has it: 40 images with their captions."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng, rows = np.random.default_rng(0), []
    for number in range(40):
        Image.fromarray(rng.integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")
        rows.append({"file_name": f"{number}.jpg", "text": f"photo {number}"})
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return folder


def test_ones_own_folder_is_read_trained_on_and_gone_on_with(script, photos, tmp_path, capsys):
    """The README's way, with the recipe's batch of 64 pairs, which so few images do not fill."""
    recipe, output_dir = RECIPE.with_name("flickr8k.yaml"), tmp_path / "out"
    common = [str(recipe), "--train_data", str(photos), "--output_dir", str(output_dir)]
    script.main([*common, "--dry_run_data", "30"])
    assert json.loads(capsys.readouterr().out)["samples_in_an_epoch"] == 40
    assert [path.name for path in output_dir.iterdir()] == ["samples.png"]
    with pytest.raises(SystemExit, match="give --eval_data, or --eval_strategy no"):
        script.main(common)
    common += ["--disable_tqdm", "true", "--max_steps", "4", "--data_seed", "2"]
    evaluation = ["--eval_data", str(photos)]
    with pytest.raises(SystemExit, match="lower global_batch_size"):
        script.main([*common, *evaluation])
    common += ["--global_batch_size", "8", "--save_steps", "2"]
    (photos / "7.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit, match=r"1 of 40 samples to evaluate are broken, .* 7\.jpg"):
        script.main([*common, *evaluation])
    script.main([*common, "--eval_strategy", "no"])
    (output_dir / "model.safetensors").unlink()
    shutil.rmtree(output_dir / "checkpoint-4")
    script.main([*common, "--eval_strategy", "no", "--resume_from_checkpoint", "true"])
    results = json.loads((output_dir / "results.json").read_text())
    (counts,) = results["data"].values()
    listed = (output_dir / "broken_samples.jsonl").read_text().splitlines()
    assert json.loads((output_dir / "checkpoint-2" / "data_state_0.json").read_text())["data"]["seed"] == 2
    assert counts == {"read": 32 + len(listed), "broken": len(listed)}
    assert results["arguments"]["resume_from_checkpoint"] == "true" and results["training"]["steps"] == 4


@pytest.mark.slow
def test_every_launcher_leaves_the_same_weights(tmp_path):
    """The README's command lines, with a recipe whose batch norm sees the images of all processes."""
    batch = ("--global_batch_size", str(BATCH_SIZE))
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
