import json
import runpy
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from clip_hf import ClipHfModel
from scripts.benchmarks.measuring import reports
from scripts.benchmarks.measuring.captions import class_names
from scripts.benchmarks.measuring.drawing import draw_ratios
from scripts.benchmarks.measuring.floors import Floor
from scripts.benchmarks.measuring.memory import forget_peak, peak_megabytes
from scripts.benchmarks.measuring.rounds import compare, largest_difference, take_turns
from tests.tiny_models import tiny_config

BENCHMARKS = Path(__file__).parents[2] / "scripts" / "benchmarks"
RESULTS = sorted((BENCHMARKS / "results").glob("*.json"))
RESULTS_ON_GPU = sorted((BENCHMARKS / "results" / "gpu").glob("*.json"))


def name_of(file: Path) -> str:
    return file.stem


def test_each_turn_begins_with_another_way_and_the_first_does_not_count():
    calls = []
    ways = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = take_turns(ways, 3, "letters")
    assert "".join(calls) == "abc" + "bca" + "cab" + "abc"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_the_ratio_is_that_of_the_turns():
    seconds = {"clip_hf": [1.0, 2.0, 4.0], "clip_hf compiled": [9.0, 9.0, 9.0], "peer": [2.0, 2.0, 12.0]}
    case = compare("case", seconds | {"slow peer": [20.0, 20.0, 20.0]}, amount=10)
    assert case["ours"] == "clip_hf"
    assert case["versus"] == [{"peer": "peer", "aim": None, "times_faster": 2, "quartiles": [1.5, 2.5]}]
    assert case["per_second"] == {"clip_hf": 5.0, "clip_hf compiled": 1.111, "peer": 5.0, "slow peer": 0.5}


def test_each_family_of_peers_has_its_aim_and_a_missed_one_its_reason():
    seconds = {"clip_hf": [1.0], "open_clip": [5.0], "open_clip compiled": [4.0], "transformers": [1.25]}
    aims = {"open_clip": 3.0, "transformers": 1.5}
    case = compare("case", seconds | {"floor": [0.5, 0.7]}, 1, aims)
    assert [(one["peer"], one["times_faster"]) for one in case["versus"]] == [
        ("open_clip compiled", 4),
        ("transformers", 1.25),
    ]
    assert case["share_of_floor"] == {
        "clip_hf": 0.5,
        "open_clip": 0.1,
        "open_clip compiled": 0.125,
        "transformers": 0.4,
    }
    assert case["why"] == "Ours reach 50% of the floor, transformers 40%."
    out_of_reach = compare("case", seconds | {"floor": [0.5, 0.7]}, 1, {"transformers": 3.0})
    assert out_of_reach["why"].endswith("40%: it takes 2.5 times the floor of ours, and no more can be won over it.")
    beaten = compare("case", seconds | {"floor": [1.1]}, 1, {"transformers": 1.5})
    assert beaten["why"] == "Ours reach 110% of the floor, transformers 88%."
    assert "why" not in compare("case", seconds, 1, {"open_clip": 3.0})
    assert "1.25 s, ours 1 s" in compare("case", seconds, 1, {"transformers": 1.5})["why"]


def test_ways_that_compute_something_else_are_not_compared():
    one = torch.ones(3)
    assert largest_difference({"ours": one, "theirs": one + 5e-5}) == pytest.approx(5e-5, rel=0.1)
    with pytest.raises(RuntimeError, match="ours, theirs differ by"):
        largest_difference({"ours": one, "theirs": one + 1e-3})
    with pytest.raises(RuntimeError, match="differ by nan"):
        largest_difference({"ours": one, "theirs": one * torch.nan})
    assert largest_difference({"ours": one, "theirs": one + 1e-3}, "bfloat16") > 0


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_the_operations_are_those_that_torch_counts_forward_and_backward(kind):
    config = tiny_config(kind)
    model = ClipHfModel._from_config(config, attn_implementation="eager").train()
    size = config.vision_config.image_size
    inputs = {"pixel_values": torch.randn(2, 3, size, size), "input_ids": torch.tensor([[1, 2, 0]] * 2)}
    inputs["input_ids"][:, -1] = config.text_config.eos_token_id

    def step() -> None:
        model(**inputs, return_loss=True).loss.backward()

    with FlopCounterMode(display=False) as counter:
        step()
    floor = Floor.of(step)
    assert floor.flops == counter.get_total_flops()
    assert (floor.other_flops > 0) == (kind == "resnet")  # the convolutions


def test_attention_counts_two_products_forward_and_five_backward():
    query, key, value = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 3 * 5 * 5 * 8

    def attend() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    assert Floor.of(attend).flops == 2 * product
    assert Floor.of(lambda: attend().sum().backward()).flops == (2 + 5) * product


def test_products_are_seen_under_inference_mode():
    layer = torch.nn.Linear(3, 4)

    @torch.inference_mode()
    def compute() -> None:
        layer(torch.ones(2, 3))

    assert Floor.of(compute).products == {(1, 2, 3, 4): 1}


def test_the_floor_is_the_best_time_of_each_product_and_the_best_rate_for_the_rest():
    floor = Floor({(1, 2, 3, 4): 10}, other_flops=1e9)
    floor()
    large, small = (floor.best[shape] for shape in ((1, 1024, 1024, 1024), (1, 2, 3, 4)))
    assert floor.seconds == pytest.approx(10 * small + 1e9 / (2 * 1024**3 / large))
    assert "1 GFLOP" in str(floor)


def test_memory_that_is_taken_and_given_back_was_held_at_most():
    before = forget_peak()
    torch.ones(25_000_000)  # 100 MB
    assert 90 < peak_megabytes() - before < 150
    if sys.platform != "darwin":
        assert forget_peak() - before < 50


def test_a_report_says_on_what_it_was_measured(tmp_path, capsys):
    case = compare("case", {"clip_hf": [1.0], "peer": [1.0], "floor": [0.5]}, 1, {"peer": 2.0}, bound="a bound")
    options = Namespace(output=tmp_path / "row.json", repeats=1)
    reports.save("Row", "images", options, [case])
    report = json.loads(options.output.read_text(encoding="utf-8"))
    assert report["cases"] == [case]
    assert report["options"] == {"repeats": 1}
    assert {"python", "torch", "torchvision"} <= report["versions"].keys()
    assert "processors" in report["hardware"]
    printed = capsys.readouterr().out
    assert "1.0 (1.0 to 1.0) times peer, aim 2" in printed
    assert "why: Ours reach 50% of the floor, peer 50%: it takes 2 times the floor of ours" in printed


def test_results_of_a_gpu_do_not_replace_those_of_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(reports, "RESULTS", tmp_path)
    monkeypatch.setattr(reports, "RESULTS_ON_GPU", tmp_path / "gpu")
    for device in ("cpu", "cuda"):
        reports.write(tmp_path / "row.json", "Row", "images", Namespace(device=device))
    files = {device: tmp_path / folder / "row.json" for device, folder in (("cpu", ""), ("cuda", "gpu"))}
    for device, file in files.items():
        assert json.loads(file.read_text(encoding="utf-8"))["options"] == {"device": device}
    reports.write(tmp_path / "elsewhere" / "row.json", "Row", "images", Namespace(device="cuda"))
    assert (tmp_path / "elsewhere" / "row.json").is_file()


@pytest.mark.filterwarnings("error")
def test_bars_keep_their_place_beside_long_names(tmp_path):
    bar = {"times_faster": 2.0, "quartiles": [1.5, 2.5], "aim": 3.0}
    draw_ratios({f"{'a long name, ' * 12}{number}": bar for number in range(3)}, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 1000


def test_class_names_are_frequent_pairs_of_long_words():
    captions = ["A white horse jumps .", "The white horse, and a white house", "one white house", "white house"]
    assert class_names(captions, 2) == ["white house", "white horse"]
    with pytest.raises(SystemExit, match="the captions give 3 class names, fewer than the 9 asked for"):
        class_names(captions, 9)


@pytest.mark.parametrize("file", [*RESULTS, *RESULTS_ON_GPU], ids=name_of)
def test_what_is_short_of_its_aim_says_why(file):
    cases = json.loads(file.read_text(encoding="utf-8")).get("cases", [])
    missed = [c for c in cases if any(one["aim"] and one["times_faster"] < one["aim"] for one in c.get("versus", []))]
    of_products = [case for case in cases if "times_its_products" in case]
    missed += [c for c in of_products if c["times_its_products"]["best"] > c["times_its_products"]["aim"]]
    # Shares of the floor are no reasons.
    silent = [case["case"] for case in missed if case.get("why", "Ours reach").startswith("Ours reach")]
    assert not silent, f"{file.name} does not say why these are slow: {silent}"


@pytest.mark.parametrize("file", RESULTS, ids=name_of)
def test_results_were_measured_with_the_default_options(file, monkeypatch):
    report = json.loads(file.read_text(encoding="utf-8"))
    if "commit" not in report:
        pytest.skip("measured before results recorded their commit")
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", [file.stem])
    defaults = {}

    def parse_nothing(parser: ArgumentParser) -> None:
        defaults.update({a.dest: a.default for a in parser._actions if not isinstance(a.default, Path)})
        raise SystemExit

    monkeypatch.setattr(ArgumentParser, "parse_args", parse_nothing)
    with pytest.raises(SystemExit):
        runpy.run_path(str(BENCHMARKS / f"{file.stem}.py"), run_name="__main__")
    del defaults["help"]
    assert report["options"] == defaults
