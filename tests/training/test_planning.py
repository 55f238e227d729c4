"""The planner, against what autograd saves, what processes were counted to send, and arithmetic."""

import importlib
import json
from pathlib import Path

import pytest
import torch

from clip_hf import ClipHfConfig
from clip_hf.training import ClipTrainingArguments
from clip_hf.training.activation_memory import saved_bytes
from clip_hf.training.lora import Adapter
from clip_hf.training.planning import COLLECTED_BYTES, NUM_BUCKETS, Hardware, Training, plan
from clip_hf.training.tower_locks import TowerLocks
from scripts.plan_run import main, read_training
from tests.tiny_models import TOWERS, random_ids, random_pixels, tiny_config, tiny_model

ROOT = Path(__file__).parents[2]
MEASURED = ROOT / "scripts" / "benchmarks" / "results"
RECIPES = ROOT / "scripts" / "recipes"
ONE = Hardware(1, 1e12, 0.5, 1e9)
STATE = ("parameters", "gradients", "optimizer")


def state_of(planned):
    return sum(planned.memory[part] for part in STATE)


def without_activations(*args, **options):
    """A training whose gradients find no place where activations were."""
    training = Training(*args, **options)
    training.bytes_of_image = training.bytes_of_text = 0.0
    return training


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
            images = model.vision_model(pixel_values=random_pixels(model.config, number), pooled_only=True)
            texts = model.text_model(input_ids=random_ids(model.config, number), pooled_only=True)
            total = sum(sizes.values())
        del images, texts
        return total

    expected = (saved(12) - saved(8)) / 4
    assert sum(saved_bytes(model.config, 16)) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    ("engine", "share_of_four"), [("ddp", 16), ("zero1", 8 + 8 / 4), ("zero2", 4 + 12 / 4), ("zero3", 16 / 4)]
)
def test_engines_divide_what_they_divide(engine, share_of_four):
    training = without_activations(tiny_config("vit"), 64)
    planned = plan(training, Hardware(4, 1e12, 0.5, 1e9), engine)
    assert state_of(planned) == pytest.approx(share_of_four * training.num_parameters)


@pytest.mark.parametrize(
    ("engine", "expected"),
    [("ddp", (4, 4, 8)), ("zero1", (4, 4, 8 / 4)), ("zero2", (4, 4 / 4, 8 / 4)), ("zero3", (4 / 4, 4 / 4, 8 / 4))],
)
def test_parameters_gradients_and_averages_are_told_apart(engine, expected):
    training = without_activations(tiny_config("vit"), 64)
    memory = plan(training, Hardware(4, 1e12, 0.5, 1e9), engine).memory
    assert [memory[part] / training.num_parameters for part in STATE] == pytest.approx(expected)
    assert list(memory) == [*STATE, "buffers", "activations", "batch", "loss"]
    options = {"locked": ("image",), "optimizer": "adamw_torch_8bit", "has_average": True}
    training = Training(tiny_config("vit"), 64, chunk_size=32, **options)
    memory = plan(training, ONE, engine).memory
    parts = (8 * training.num_parameters, 4 * training.num_trained, 2 * training.num_trained)
    assert tuple(memory[part] for part in STATE) == parts


def test_engines_keep_buckets_and_parts_for_the_step():
    training, devices = Training(ClipHfConfig.from_architecture("ViT-B/32"), 64), Hardware(4, 1e12, 0.5, 1e9)
    size, bucket = 4 * training.num_parameters, 200_000_000
    kept = {"ddp": size, "zero1": size / 4 + bucket, "zero2": size / 4 + 2 * bucket, "zero3": 1.25 * size + 2 * bucket}
    for engine, expected in kept.items():
        assert plan(training, devices, engine).memory["buffers"] == pytest.approx(expected), engine
    assert plan(training, ONE, "ddp").memory["buffers"] == 0
    for engine in ("zero1", "zero2", "zero3"):
        options = json.loads((RECIPES.parent / "deepspeed" / f"{engine}.json").read_text())["zero_optimization"]
        assert (
            4 * options["reduce_bucket_size"] == bucket
            and 1 + options.get("overlap_comm", False) == NUM_BUCKETS[engine]
        )
    assert 4 * options["stage3_max_live_parameters"] == COLLECTED_BYTES
    small = Training(tiny_config("vit"), 64)
    assert plan(small, devices, "zero2").memory["buffers"] == pytest.approx(2.25 * 4 * small.num_parameters)
    for engine in ("zero2", "zero3"):  # of chunks, a tower's gradients are whole until the last of them
        whole, chunks = (
            plan(without_activations(tiny_config("vit"), 64, size), devices, engine) for size in (None, 8)
        )
        others = max(small.trained_of_tower.values()) * 3 / 4  # of the four parts, those of the other devices
        assert chunks.memory["gradients"] - whole.memory["gradients"] == pytest.approx(4 * others)


def test_buckets_come_where_a_chunks_activations_were():
    config, devices = ClipHfConfig.from_architecture("ViT-B/32"), Hardware(2, 1e12, 0.5, 1e9)
    part = 4 * Training(config, 64).num_trained / 2
    for chunk_size in (1, 16):
        plans = {engine: plan(Training(config, 64, chunk_size), devices, engine).memory for engine in NUM_BUCKETS}
        for engine in ("zero1", "zero2"):
            buckets, activations = NUM_BUCKETS[engine] * 200_000_000, plans[engine]["activations"]
            assert plans[engine]["buffers"] == pytest.approx(part + max(0, buckets - activations)), engine
        assert plans["zero3"]["buffers"] == pytest.approx(part + 2 * part + 2 * 200_000_000)


@pytest.mark.parametrize(("engine", "share"), [("ddp", 1), ("zero1", 1), ("zero2", 1 / 2), ("zero3", 1 / 2)])
def test_gradients_come_where_activations_were_unless_chunks_follow(engine, share):
    config, devices = tiny_config("vit"), Hardware(2, 1e12, 0.5, 1e9)
    memory = plan(Training(config, 2), devices, engine).memory
    gradients = 4 * Training(config, 2).num_trained * share
    assert 0 < memory["activations"] < gradients
    assert memory["gradients"] + memory["activations"] == pytest.approx(gradients)
    assert plan(Training(config, 8, 1), devices, engine).memory["gradients"] >= gradients


def test_a_device_sends_what_was_counted():
    """The model of scripts/benchmarks/communication.py, on two processes."""
    tower = {"hidden_size": 128, "num_hidden_layers": 4}
    vision = tower | {"image_size": 32, "patch_size": 8}
    training = Training(ClipHfConfig(projection_dim=128, text_config=tower, vision_config=vision), 64)
    counted = json.loads((MEASURED / "communication.json").read_text(encoding="utf-8"))["cases"]
    found = {case["case"]: case["bytes_sent"] for case in counted}
    for engine, name in {"ddp": "ddp", "zero1": "zero1", "zero2": "zero2", "zero3": "zero3_sparing"}.items():
        assert plan(training, Hardware(2, 1e12, 0.5, 1e9), engine).sent == pytest.approx(found[name], rel=0.01), engine


def test_measured_memory_is_near_the_plan(monkeypatch):
    monkeypatch.syspath_prepend(MEASURED.parent)
    plan_case = importlib.import_module("planned_memory").plan_case
    what = ("architecture", "batch_size", "chunk_size", "text_length", "engine", "num_devices")
    for case in json.loads((MEASURED / "planned_memory.json").read_text(encoding="utf-8"))["cases"]:
        planned = sum(plan_case(**{name: case[name] for name in what}).values())
        assert planned == pytest.approx(case["planned_megabytes"], rel=0.001), "measure again: the planner has changed"
        assert planned == pytest.approx(case["measured_megabytes"], rel=0.15), case["case"]


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


def trained_with(engine="ddp", **options):
    training = without_activations(tiny_config("vit"), 64, **options)
    return training, state_of(plan(training, Hardware(4, 1e12, 0.5, 1e9), engine))


def test_averages_take_what_the_optimizer_gives_them():
    for optimizer, size in (("adamw_torch", 16), ("adamw_torch_8bit", 10), ("sgd", 8)):
        training, found = trained_with(optimizer=optimizer)
        assert found == size * training.num_parameters
    training, found = trained_with("zero3", has_average=True)
    assert found == (16 / 4 + 4) * training.num_parameters
    with pytest.raises(ValueError, match="optim is lomo, but"):
        trained_with(optimizer="lomo")


def test_what_is_held_has_no_gradients_activations_or_messages():
    model = tiny_model("vit")
    rest = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("vision_model"))
    training, found = trained_with(locked=("image",))
    assert training.num_trained == rest and found == 4 * training.num_parameters + 12 * rest
    whole, training = (Training(tiny_config("vit"), 64, locked=locked) for locked in ((), ("image",)))
    plans = [plan(one, Hardware(4, 1e12, 0.5, 1e9), "ddp") for one in (whole, training)]
    assert plans[1].memory["activations"] == 16 * training.bytes_of_text < plans[0].memory["activations"]
    assert plans[1].sent < plans[0].sent and plans[1].compute_seconds < plans[0].compute_seconds


@pytest.mark.parametrize("locked", [(), ("image",)])
def test_an_adapter_has_the_parameters_that_peft_gives_it(locked, tmp_path):
    model = tiny_model("vit")
    args = ClipTrainingArguments(str(tmp_path), use_cpu=True, image_locked_steps=-1 if locked else 0)
    Adapter(model, 3, args)
    TowerLocks(args, model)
    training, found = trained_with(lora_rank=3, locked=locked)
    assert training.num_parameters == sum(p.numel() for p in model.parameters())
    assert training.num_trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found == 4 * training.num_parameters + 12 * training.num_trained


def test_layers_that_are_computed_again_keep_their_inputs():
    """Of the tiny ViT: 17 patches of 48 numbers."""
    two, five = tiny_config("vit"), tiny_config("vit")
    five.vision_config.num_hidden_layers = five.text_config.num_hidden_layers = 5
    image, text = saved_bytes(five, 16, 0.0, True)
    assert image < 0.5 * saved_bytes(five, 16)[0] and text < 0.5 * saved_bytes(five, 16)[1]
    assert image - saved_bytes(two, 16, 0.0, True)[0] == pytest.approx(3 * 17 * 48 * 4, rel=0.01)
    assert saved_bytes(five, 16, 0.5)[0] < 0.6 * saved_bytes(five, 16)[0]


def test_smaller_images_take_less_compute_and_as_much_memory():
    """Four fifths of the run at a quarter of the area."""
    whole, growing = (Training(tiny_config("vit"), 64, **one) for one in ({}, {"smaller_image_sizes": (16,)}))
    assert growing.flops["image"] / whole.flops["image"] == pytest.approx(0.2 + 0.8 / 4)
    assert growing.bytes_of_image == whole.bytes_of_image


def test_texts_may_have_chunks_of_their_own():
    training = Training(tiny_config("vit"), 64, 8, text_chunk_size=32)
    assert (training.chunk_sizes(1), training.chunk_sizes(16)) == ((8, 32), (4, 4))
    assert plan(training, ONE, "ddp").memory["activations"] == max(
        8 * training.bytes_of_image, 32 * training.bytes_of_text
    )


def test_a_recipe_is_read_as_the_training_reads_it(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "output_dir: out\narchitecture: RN50\nvocab_size: 600\nper_device_train_batch_size: 16\nema_decay: 0.9\n"
        """config: '{"vision_config": {"image_size": 64}, "text_config": {"num_hidden_layers": 1}}'\n"""
        "grad_cache_chunk_size: 4\ngrad_cache_text_chunk_size: 8\ntext_locked_steps: -1\noptim: sgd\nbf16: true\n"
    )
    training = read_training(str(recipe), 4, 16, more=["--activation_checkpointing", "true"])
    assert training.config.text_config.vocab_size == 600 and training.config.vision_config.image_size == 64
    assert (training.global_batch_size, training.chunk_sizes(4), training.locked) == (64, (4, 8), ("text",))
    assert training.activation_checkpointing and training.has_average and training.bf16
    assert training.optimizer == "sgd"
    recipe.write_text("output_dir: out\nchunks: 3\n")
    with pytest.raises(ValueError, match="sets chunks, which are no options"):
        read_training(str(recipe), 4, 16)


def test_a_recipe_of_several_sources_engines_and_libraries_is_planned_anywhere(tmp_path, monkeypatch):
    monkeypatch.setattr("clip_hf.training.combinations.find_spec", lambda name: None)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "output_dir: out\ntrain_data: [one, two]\ntrain_weights: [3, 1]\nglobal_batch_size: 64\n"
        "deepspeed: scripts/deepspeed/zero3.json\noptim: adamw_torch_8bit\nema_decay: 0.9\n"
    )
    assert read_training(str(recipe), 4, 16).optimizer == "adamw_torch_8bit"
    recipe.write_text("output_dir: out\nfsdp: true\n")
    read_training(str(recipe), 4, 16, more=["--train_data", "one", "two", "--train_weights", "3", "1"])
    recipe.write_text("output_dir: out\narchitecture: RN50\npatch_dropout: 0.5\n")
    with pytest.raises(ValueError, match="image tower is a ResNet"):
        read_training(str(recipe), 4, 16)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["nowhere.yaml"], "there is no recipe .*nowhere.yaml"),
        (["vit_l_14_336px.yaml"], "say of which --architecture it is"),
        (["vit_b_32.yaml", "--gpus", "3"], "32768, which 3 devices cannot share"),
        (["vit_b_32.yaml", "--chunk_size", "0"], "grad_cache_chunk_size is 0"),
        (["vit_b_32.yaml", "--text_length", "100"], "text_length is 100, but"),
    ],
)
def test_the_script_tells_mistakes_in_a_line(options, problem):
    with pytest.raises(SystemExit, match=problem):
        main([str(RECIPES / options[0]), *options[1:]])


def test_the_script_has_a_line_for_each_engine(capsys):
    main([str(RECIPES / "vit_b_32.yaml"), "--gpus", "512", "--memory", "80"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines if len(line) > 8 and "fits" in line] == ["ddp", "zero1", "zero2", "zero3"]
    assert "32,768 pairs on 512 devices, 64 at a time" in " ".join(lines[0])
    assert lines[2][4:12] == [*STATE, "buffers", "activations", "batch", "loss", "all"]
    for line in lines[3:7]:
        assert sum(map(float, line[1:8])) == pytest.approx(float(line[8]), abs=0.04)
