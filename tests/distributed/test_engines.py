"""Every engine, on two processes, gives the parameters that one plain process gives with the whole batch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel

from clip_hf import ClipHfModel
from clip_hf.training import ClipTrainer, ClipTrainingArguments
from tests.distributed.one_process import ADAM_EPSILONS, MAX_LOGIT_SCALE, NUM_RANKS, reference
from tests.distributed.run_engines import BATCH_SIZE, MAX_GRAD_NORM, NUM_EVAL_PAIRS, NUM_STEPS, train
from tests.ranks import launched_environment
from tests.tiny_models import randomize_batch_norms, tiny_model
from tests.tiny_pairs import TinyCaptions, TinyPairs, collate, collate_captions

ENGINES = ("ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2")
# Chunks and tiles that do not divide the batch; a ResNet's chunks are alike, for the reference to have the same ones.
CHUNK_SIZES = {"vit": 3, "resnet": 4}
TILE_SIZE = 5
IMAGE_RATE = 0.005


def make_case(
    engine: str,
    model: str,
    optim: str = "sgd",
    chunked: bool = True,
    tiled: bool = True,
    synced: bool = False,
    image_rate: float | None = None,
) -> dict[str, Any]:
    """One run; `model` is the name of a checkpoint that the fixture `models` makes, and begins with the tower's."""
    tower = model.split("-")[0]
    ways = ["chunked" if chunked else "whole", "tiled" if tiled else "plain"]
    ways += ["synced"] * synced + ["rated"] * (image_rate is not None)
    return {
        "name": "-".join([engine, model, optim, *ways]),
        "engine": engine,
        "model": model,
        "optim": optim,
        "num_pairs": BATCH_SIZE if "memorized" in model else NUM_STEPS * BATCH_SIZE,
        "arguments": {
            "grad_cache_chunk_size": CHUNK_SIZES[tower] if chunked else None,
            "loss_tile_size": TILE_SIZE if tiled else None,
            "adam_epsilon": ADAM_EPSILONS[tower],
            "sync_batch_norm": synced,
            "image_learning_rate": image_rate,
        },
    }


FAST_CASES = [
    make_case("ddp", "vit"),
    make_case("ddp", "resnet", chunked=False, tiled=False),
    make_case("ddp", "resnet", tiled=False, synced=True),
    *(make_case("fsdp2", "vit", chunked=chunked) | {"counted": True} for chunked in (False, True)),
    make_case("zero2", "vit", chunked=False, image_rate=IMAGE_RATE),
    make_case("zero3", "vit", "adamw_torch") | {"captions": True},
    make_case("zero3", "vit-memorized"),
]
MATRIX = [
    make_case(engine, tower, optim, chunked, tiled)
    for engine in ("single", *ENGINES)
    for tower in ("vit", "resnet")
    for optim in ("sgd", "adamw_torch")
    for chunked in (False, True)
    for tiled in (False, True)
]
SYNCED = [make_case(engine, "resnet", chunked=chunked, synced=True) for engine in ENGINES for chunked in (False, True)]
BOUND = [make_case(engine, model) for engine in ENGINES for model in ("vit-hot", "vit-memorized")]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder of checkpoints to begin with: the two towers, and a scale above the bound that wants down or up."""
    folder = tmp_path_factory.mktemp("models")
    for name, tower in {"vit": "vit", "resnet": "resnet", "vit-hot": "vit", "vit-memorized": "vit"}.items():
        model = tiny_model(tower)
        randomize_batch_norms(model)  # gains of zero would keep a block's gradients from what lies in it
        if name == "vit-memorized":
            memorize(model)
        if name in ("vit-hot", "vit-memorized"):
            nn.init.constant_(model.logit_scale, MAX_LOGIT_SCALE + 0.01)
        model.save_pretrained(folder / name)
    return folder


def memorize(model: ClipHfModel) -> None:
    """Teaches the model the pairs of one batch until, at a scale of 100, the loss would fall if the scale rose."""
    pairs = TinyPairs(model.config, BATCH_SIZE)
    batch = collate([pairs[index] for index in range(BATCH_SIZE)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    for _ in range(8):
        model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"], return_loss=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def launch(
    cases: list[dict[str, Any]], models: Path, folder: Path, num_ranks: int = NUM_RANKS, device: str = "cpu"
) -> dict[str, dict[str, Any]]:
    """What each case left, by name, trained on `num_ranks` processes."""
    cases = [case | {"model": str(models / case["model"])} for case in cases]
    run_cases("run_engines.py", cases, folder, num_ranks, device)
    return {case["name"]: torch.load(folder / f"{case['name']}.pt", map_location="cpu") for case in cases}


def run_cases(
    script: str, cases: list[dict[str, Any]], folder: Path, num_ranks: int = NUM_RANKS, device: str = "cpu"
) -> None:
    """Runs a script beside this one on a list of cases, on `num_ranks` processes."""
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_ranks)]
    arguments = [Path(__file__).with_name(script), folder / "cases.json", folder]
    environment = launched_environment(device)
    run = subprocess.run([*launcher, *arguments], env=environment, capture_output=True, text=True, timeout=840)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-6000:]


def assert_same_training(
    case: dict[str, Any], found: dict[str, Any], models: Path, num_ranks: int = NUM_RANKS
) -> None:
    """`found` is what one process with the whole batch leaves."""
    arguments = case["arguments"]
    group_size = arguments["grad_cache_chunk_size"] or BATCH_SIZE // num_ranks
    is_synced = arguments["sync_batch_norm"]
    setup = (group_size, is_synced, arguments["image_learning_rate"])
    expected = reference(models / case["model"], case["optim"], case["num_pairs"], *setup)
    for name, buffer in expected["buffers"].items():
        if is_synced:
            assert torch.allclose(found["buffers"][name], buffer, rtol=1e-5, atol=1e-5), name
    assert found["rates"] == expected["rates"]
    assert found["parameters"].keys() == expected["parameters"].keys()
    # Rounding decides whether a unit of a ReLU that is nearly zero passes its gradient on: in so small a ResNet, a
    # hundredth of its channel's.
    tolerance = 5e-2 if case["model"] == "resnet" else 1e-3
    for name, parameter in expected["parameters"].items():
        assert torch.dist(found["parameters"][name], parameter) < tolerance * expected["moved"][name] + 1e-6, name
    assert len(found["log"]) == NUM_STEPS
    assert max(entry["grad_norm"] for entry in expected["log"]) > MAX_GRAD_NORM, "no gradient was clipped"
    for entry, expected_entry in zip(found["log"], expected["log"], strict=True):
        for key, value in expected_entry.items():
            assert entry[key] == pytest.approx(value, rel=tolerance / 10, abs=1e-6), key


@pytest.fixture(scope="module")
def fast_results(models, tmp_path_factory) -> tuple[Path, dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("fast")
    return folder, launch(FAST_CASES, models, folder)


@pytest.mark.parametrize("case", FAST_CASES, ids=lambda case: case["name"])
def test_some_engines_train_as_one_process(case, fast_results, models):
    _, results = fast_results
    assert_same_training(case, results[case["name"]], models)


def test_a_fully_sharded_step_reduces_gradients_once_in_chunks_too(fast_results):
    _, results = fast_results
    assert_reduced_once("fsdp2", results)


def assert_reduced_once(engine: str, results: dict[str, dict[str, Any]]) -> None:
    """A step in chunks reduces the bytes of a whole one, which are at least those of all parameters once."""
    whole, chunked = (results[make_case(engine, "vit", chunked=chunked)["name"]] for chunked in (False, True))
    num_bytes = sum(parameter.nbytes for parameter in whole["parameters"].values())
    share = 1 / NUM_RANKS if engine in ("zero3", "fsdp2") else 1  # of a reduce-scatter, or of an all-reduce
    assert whole["reduced"] == chunked["reduced"]
    assert whole["reduced"] == pytest.approx(NUM_STEPS * num_bytes * share, rel=0.02)


def test_a_trained_model_opens_with_auto_model(fast_results):
    """What ZeRO-3 holds in parts is saved whole."""
    folder, results = fast_results
    name = make_case("zero3", "vit", "adamw_torch")["name"]
    saved = dict(AutoModel.from_pretrained(folder / name).named_parameters())
    for key, parameter in results[name]["parameters"].items():
        assert torch.equal(saved[key], parameter), key


@pytest.mark.parametrize("case", [case for case in FAST_CASES if case["engine"] != "fsdp2"], ids=lambda c: c["name"])
def test_two_processes_evaluate_as_one(case, fast_results):
    """Every pair counts once, and batch norm uses the statistics that are saved on both."""
    folder, results = fast_results
    model = AutoModel.from_pretrained(folder / case["name"]).eval()
    pairs = TinyPairs(model.config, NUM_EVAL_PAIRS)
    batch = collate([pairs[index] for index in range(NUM_EVAL_PAIRS)])
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"]).logits_per_image
    labels = torch.arange(NUM_EVAL_PAIRS)
    loss = (nn.functional.cross_entropy(logits, labels) + nn.functional.cross_entropy(logits.T, labels)) / 2
    metrics = results[case["name"]]["metrics"]
    assert metrics["eval_loss"] == pytest.approx(loss.item(), rel=1e-4)
    for k in (1, 5, 10):
        found = (logits > logits.diagonal()[:, None]).sum(dim=1) < k
        assert metrics[f"eval_text_retrieval_recall@{k}"] == pytest.approx(found.float().mean().item())
        found = (logits > logits.diagonal()).sum(dim=0) < k
        assert metrics[f"eval_image_retrieval_recall@{k}"] == pytest.approx(found.float().mean().item())


def test_processes_of_a_divided_model_may_evaluate_different_numbers_of_texts(fast_results, tmp_path):
    """Rank 1 has five times the texts of rank 0, and would bring the parts of the model together more often."""
    folder, results = fast_results
    name = make_case("zero3", "vit", "adamw_torch")["name"]
    model = ClipHfModel.from_pretrained(folder / name)
    args = ClipTrainingArguments(str(tmp_path), use_cpu=True, dataloader_num_workers=0)
    captions = TinyCaptions(model.config, NUM_EVAL_PAIRS)
    expected = ClipTrainer(model, args, collate_captions).evaluate(captions)
    for key in ("eval_loss", "eval_text_retrieval_recall@1", "eval_image_retrieval_recall@1", "eval_mean_recall"):
        assert results[name]["caption_metrics"][key] == pytest.approx(expected[key], rel=1e-4), key


@pytest.mark.slow
@pytest.mark.parametrize("steps", [-1, 2])
def test_every_engine_locks_and_unlocks_as_one_process(steps, models, tmp_path):
    cases = [make_case(engine, "vit", "adamw_torch") for engine in ("single", *ENGINES)]
    for case in cases:
        case["arguments"]["image_locked_steps"] = steps
    expected = train(cases[0] | {"model": str(models / "vit")}, tmp_path)
    results = launch(cases[1:], models, tmp_path)
    before = ClipHfModel.from_pretrained(models / "vit").state_dict()
    for case in cases[1:]:
        for name, parameter in results[case["name"]]["parameters"].items():
            assert (parameter - expected["parameters"][name]).abs().max() < 1e-5, (case["name"], name)
            if steps == -1 and name.startswith("vision_model"):
                assert torch.equal(parameter, before[name]), (case["name"], name)


@pytest.mark.parametrize(
    "case", [case for case in MATRIX if case["engine"] == "single"], ids=lambda case: case["name"]
)
def test_one_process_trains_as_written_out(case, models, tmp_path):
    found = train(case | {"model": str(models / case["model"])}, tmp_path)
    assert_same_training(case, found, models, num_ranks=1)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_trains_as_one_process(engine, models, tmp_path):
    cases = [case for case in MATRIX if case["engine"] == engine]
    results = launch(cases, models, tmp_path)
    for case in cases:
        assert_same_training(case, results[case["name"]], models)


@pytest.mark.slow
def test_chunks_reduce_gradients_once_a_step(models, tmp_path):
    engines = ("ddp", "zero1", "zero2", "zero3")
    cases = [make_case(engine, "vit", chunked=chunked) for engine in engines for chunked in (False, True)]
    results = launch([case | {"counted": True} for case in cases], models, tmp_path)
    for engine in engines:
        assert_reduced_once(engine, results)


@pytest.mark.slow
def test_every_engine_gives_the_image_tower_its_rate(models, tmp_path):
    cases = [make_case(engine, "vit", image_rate=IMAGE_RATE) for engine in ENGINES]
    results = launch(cases, models, tmp_path)
    for case in cases:
        assert_same_training(case, results[case["name"]], models)


@pytest.mark.slow
def test_compiled_towers_train_on_two_processes_as_one_plain_one(models, tmp_path):
    cases = [make_case(engine, tower) for engine in ("ddp", "zero2") for tower in ("vit", "resnet")]
    for case in cases:
        case["arguments"]["torch_compile_backend"] = "aot_eager"
    results = launch(cases, models, tmp_path)
    for case in cases:
        assert results[case["name"]]["num_graphs"] >= 2
        assert_same_training(case, results[case["name"]], models)


@pytest.mark.slow
def test_synced_batch_norm_normalises_over_all_processes(models, tmp_path):
    results = launch(SYNCED, models, tmp_path)
    for case in SYNCED:
        assert_same_training(case, results[case["name"]], models)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_scale_stays_at_its_bound_and_comes_down(engine, models, tmp_path):
    cases = [case for case in BOUND if case["engine"] == engine]
    hot, memorized = (launch(cases, models, tmp_path)[case["name"]] for case in cases)
    for case, found in zip(cases, (hot, memorized), strict=True):
        assert_same_training(case, found, models)
    assert [entry["scale"] for entry in memorized["log"]] == pytest.approx([100] * NUM_STEPS)
    assert hot["parameters"]["logit_scale"] < memorized["parameters"]["logit_scale"] <= MAX_LOGIT_SCALE + 0.01


@pytest.mark.slow
def test_bf16_leaves_parameters_and_loss_in_float32(models, tmp_path):
    """One meaning in every engine: the towers compute in bfloat16, nothing that is kept is rounded."""
    cases = [make_case(engine, "vit") for engine in ("ddp", "zero2", "zero3", "fsdp2")]
    for case in cases:
        case["arguments"]["bf16"] = True
    results = launch(cases, models, tmp_path)
    expected = reference(models / "vit", "sgd", cases[0]["num_pairs"], CHUNK_SIZES["vit"])
    for case in cases:
        found = results[case["name"]]
        assert {parameter.dtype for parameter in found["parameters"].values()} == {torch.float32}
        for entry, expected_entry in zip(found["log"], expected["log"], strict=True):
            assert entry["loss"] == pytest.approx(expected_entry["loss"], rel=0.02)
            assert entry["loss"] != pytest.approx(expected_entry["loss"], rel=1e-5), "autocast was off"
            # Rounded to bfloat16, the logarithm 2.659 of the scale would be 2.656 and the scale wrong by 0.3 %.
            assert entry["scale"] == pytest.approx(expected_entry["scale"], rel=5e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3", "fsdp2"])
def test_engines_train_on_gpus_as_one_process(engine, optim, models, tmp_path):
    """Whole and chunked on all GPUs, at most four; FSDP2 through Trainer, which knows it on accelerators alone."""
    num_ranks = {1: 1, 2: 2, 3: 2}.get(torch.cuda.device_count(), 4)
    cases = [make_case(engine, "vit", optim, chunked, tiled=chunked) for chunked in (False, True)]
    for case in cases:
        case["arguments"] |= {"use_cpu": False} | ({"fsdp": True} if engine == "fsdp2" else {})
    results = launch(cases, models, tmp_path, num_ranks, "cuda")
    for case in cases:
        assert_same_training(case, results[case["name"]], models)
        saved = dict(AutoModel.from_pretrained(tmp_path / case["name"]).named_parameters())
        for name, parameter in results[case["name"]]["parameters"].items():
            assert torch.equal(saved[name], parameter), name
