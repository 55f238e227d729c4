"""The planner, against what autograd saves, what processes were counted to send, and arithmetic."""

import json
from pathlib import Path

import pytest
import torch

from clip_hf import ClipHfConfig
from clip_hf.training.planning import Hardware, Training, plan, saved_bytes
from scripts.plan_run import main
from tests.tiny_models import TOWERS, random_ids, random_pixels, tiny_config, tiny_model

ROOT = Path(__file__).parents[2]
MEASURED = ROOT / "scripts" / "benchmarks" / "results"
ONE = Hardware(1, 1e12, 0.5, 1e9)


@pytest.mark.parametrize("tower", TOWERS)
def test_activations_are_what_autograd_saves(tower):
    model = tiny_model(tower).train()

    def saved(number):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: (
                sizes.update({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()}),
                tensor,
            )[1],
            lambda tensor: tensor,
        ):
            images = model.vision_model(pixel_values=random_pixels(model.config, number))
            texts = model.text_model(input_ids=random_ids(model.config, number))
            total = sum(sizes.values())
        del images, texts
        return total

    expected = (saved(12) - saved(8)) / 4
    assert sum(saved_bytes(model.config, 16)) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    ("engine", "share_of_four"), [("ddp", 16), ("zero1", 8 + 8 / 4), ("zero2", 4 + 12 / 4), ("zero3", 16 / 4)]
)
def test_engines_divide_what_they_divide(engine, share_of_four):
    training = Training(tiny_config("vit"), 64)
    planned = plan(training, Hardware(4, 1e12, 0.5, 1e9), engine)
    assert planned.memory["parameters"] == pytest.approx(share_of_four * training.num_parameters)


def test_a_device_sends_what_was_counted():
    """The model of scripts/benchmarks/communication.py, on two processes."""
    tower = {"hidden_size": 128, "num_hidden_layers": 4}
    vision = tower | {"image_size": 32, "patch_size": 8}
    training = Training(ClipHfConfig(projection_dim=128, text_config=tower, vision_config=vision), 64)
    counted = json.loads((MEASURED / "communication.json").read_text(encoding="utf-8"))["cases"]
    found = {case["case"]: case["bytes_sent"] for case in counted}
    for engine, name in {"ddp": "ddp", "zero1": "zero1", "zero2": "zero2", "zero3": "zero3_sparing"}.items():
        assert plan(training, Hardware(2, 1e12, 0.5, 1e9), engine).sent == pytest.approx(found[name], rel=0.01), engine


def test_measured_memory_is_near_the_plan():
    for case in json.loads((MEASURED / "planned_memory.json").read_text(encoding="utf-8"))["cases"]:
        assert case["planned_megabytes"] == pytest.approx(case["measured_megabytes"], rel=0.15), case["case"]


def test_chunks_bound_activations_and_cost_a_forward_pass():
    whole, chunks = (plan(Training(tiny_config("vit"), 64, size), ONE, "ddp") for size in (None, 8))
    assert chunks.memory["activations"] < whole.memory["activations"] / 8
    assert 1.2 < chunks.compute_seconds / whole.compute_seconds < 4 / 3
    assert plan(Training(tiny_config("vit"), 64, 8), Hardware(2, 1e12, 0.5, 1e9), "ddp").sent > 0 == whole.sent


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="64, which 3 devices cannot share"):
        plan(Training(tiny_config("vit"), 64), Hardware(3, 1e12, 0.5, 1e9), "ddp")
    with pytest.raises(ValueError, match="efficiency is 40"):
        Hardware(1, 1e12, 40, 1e9)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        Training(tiny_config("vit"), 64, 0)


def test_the_script_has_a_line_for_each_engine(capsys):
    recipes = ROOT / "scripts" / "recipes"
    with pytest.raises(SystemExit, match="say of which --architecture"):
        main([str(recipes / "vit_l_14_336px.yaml")])
    main([str(recipes / "vit_b_32.yaml"), "--gpus", "64", "--memory", "80"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines if len(line) > 7 and "fits" in line] == ["ddp", "zero1", "zero2", "zero3"]
    assert "32,768" in " ".join(lines[0])
