"""Options of a training on two processes: what they leave is what one process leaves."""

from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.distributed.run_options import train
from tests.distributed.test_engines import assert_same_training, launch, make_case, run_cases
from tests.tiny_models import tiny_model

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"arguments": {}},
    "average": {"arguments": {"ema_decay": 0.25}},  # above what the first steps' own rule gives
    "adapter": {"arguments": {}, "lora_rank": 2},
    "layers": {"arguments": {"layer_decay": 0.5}},
    "resolution": {"arguments": {"smaller_image_sizes": [16, 24], "full_size_share": 0.25}},  # 16, 16, 24, 32 pixels
}
FILES = {"average": "ema/model.safetensors", "adapter": "adapter/adapter_model.safetensors"}
# Its part of the keys, added to all of them alike, has no gradient but rounding, of which Adam makes whole steps.
QKV_BIAS = "qkv.bias"


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any parameter that has a gradient."""
    assert found.keys() == expected.keys()
    names = [name for name in expected if not name.endswith(QKV_BIAS)]
    return max((found[name] - expected[name]).abs().max().item() for name in names)


@pytest.mark.slow
def test_options_train_on_two_processes_as_on_one(tmp_path):
    tiny_model("vit").save_pretrained(tmp_path / "model")
    cases = {
        (engine, option): {"engine": engine, "name": f"{engine}-{option}", "model": str(tmp_path / "model")} | setup
        for engine in ("single", "ddp", "zero2")  # DeepSpeed goes last: accelerate does not forget it
        for option, setup in OPTIONS.items()
    }
    for option in OPTIONS:
        train(cases["single", option], tmp_path)
    run_cases("run_options.py", [case for (engine, _), case in cases.items() if engine != "single"], tmp_path)

    def weights(engine: str, option: str, file: str = "model.safetensors") -> dict[str, Tensor]:
        return load_file(tmp_path / cases[engine, option]["name"] / file)

    for option in OPTIONS:
        expected = weights("single", option)
        if option not in ("plain", "average"):
            assert distance(expected, weights("single", "plain")) > 1e-4, f"{option} changes nothing"
        for engine in ("ddp", "zero2"):
            assert distance(weights(engine, option), expected) < 1e-5, (engine, option)
            if option in FILES:
                file = FILES[option]
                assert distance(weights(engine, option, file), weights("single", option, file)) < 1e-5, (engine, file)
    assert distance(weights("single", "average", FILES["average"]), weights("single", "average")) > 1e-4


@pytest.mark.slow
def test_compiled_towers_of_divided_models_and_synced_norms_train_as_one_plain_process(tmp_path):
    cases = [make_case("ddp", "resnet", tiled=False, synced=True), make_case("fsdp2", "vit", chunked=False)]
    cases += [make_case("zero3", "vit"), make_case("zero2", "resnet", chunked=False, synced=True)]
    for case in cases:
        case["arguments"]["torch_compile_backend"] = "aot_eager"
    models = tmp_path / "models"
    for tower in ("vit", "resnet"):
        tiny_model(tower).save_pretrained(models / tower)
    results = launch(cases, models, tmp_path)
    for case in cases:
        assert results[case["name"]]["num_graphs"] >= 2
        assert_same_training(case, results[case["name"]], models)
