"""Measures the peak memory of training steps in fresh processes, beside what scripts/plan_run.py says of them.

Three steps: Adam's averages are there after the first, and DDP makes its buckets anew in the second. On a CPU also of
two processes, which divide the parameters in each way. Images and texts are noise. Linux.
Where activations are most of the memory, what is measured beyond the rest of the plan must be near those planned.

    python scripts/benchmarks/planned_memory.py --device cuda --dtype bfloat16
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring.memory import forget_peak, in_fresh_process, peak_megabytes
from measuring.noise import NoisePairs
from measuring.options import add_device, make_parser
from measuring.reports import write
from tqdm import tqdm

from clip_hf import ClipHfConfig, ClipHfModel, ClipTrainer, ClipTrainingArguments
from clip_hf.model.chunked_embedding_clip_hf import length_group_sizes, num_length_groups
from clip_hf.training.planning import Hardware, Training, plan

# Beside released models, of which parameters are the most, narrow ones, of which activations are.
NARROW = {
    "narrow ViT": {"hidden_size": 256, "num_hidden_layers": 4, "image_size": 160, "patch_size": 16},
    "narrow ResNet": {"model_type": "clip_hf_resnet", "width": 32, "depths": (1, 1, 2, 1), "image_size": 128},
}
CASES = [("ViT-B/32", 16, None), ("ViT-B/32", 96, 32), ("RN50", 8, None), ("RN50", 32, 16)]
CASES += [("narrow ViT", 512, None), ("narrow ViT", 1024, 256), ("narrow ResNet", 256, None)]
CASES_OF_TWO = [
    ("ViT-B/32", *sizes, engine) for sizes in ((32, None), (64, 16)) for engine in ("ddp", "zero1", "zero2", "zero3")
]
CASES_ON_GPU = [("ViT-B/32", 512, None), ("ViT-B/32", 4096, 512), ("ViT-L/14", 64, None), ("ViT-L/14", 256, 64)]
CASES_ON_GPU += [("RN50", 256, None), ("RN50", 1024, 256)]
TOLERANCE, NUM_STEPS = 0.15, 3
RECIPES = Path(__file__).parents[1] / "deepspeed"


def build_config(name: str) -> ClipHfConfig:
    """Returns the configuration of a case's model."""
    if name not in NARROW:
        return ClipHfConfig.from_architecture(name)
    text = {"hidden_size": 256, "num_hidden_layers": 4, "vocab_size": 4096}
    return ClipHfConfig(text_config=text, vision_config=NARROW[name], projection_dim=256)


def text_length(config: ClipHfConfig, batch_size: int, chunk_size: int | None, device: str) -> int:
    """Returns the mean number of tokens of a text as it is embedded: padded to the longest of its chunk or group.

    Except in the chunks of an accelerator, only attention sees padding, and of what is kept for the backward pass, a
    fourth is attention's. On a CPU beginnings are shared, too, but these texts have none in common.
    """
    torch.manual_seed(0)
    ids = NoisePairs(config, batch_size).input_ids
    lengths = ((ids == config.text_config.eos_token_id).int().argmax(dim=-1) + 1).sort().values
    sizes = chunk_size or length_group_sizes(lengths.tolist(), num_length_groups(batch_size, device))
    padded = sum(len(group) * int(group.max()) for group in lengths.split(sizes)) / batch_size
    is_padded = device != "cpu" and chunk_size is not None
    return round(padded if is_padded else (3 * lengths.float().mean().item() + padded) / 4)


def plan_case(
    architecture: str,
    batch_size: int,
    chunk_size: int | None,
    text_length: int,
    engine: str = "ddp",
    num_devices: int = 1,
    bf16: bool = False,
) -> dict[str, float]:
    """Returns the planned megabytes of a process, by what they are for."""
    training = Training(build_config(architecture), batch_size, chunk_size, text_length, bf16=bf16)
    memory = plan(training, Hardware(num_devices, 1e12, 1.0, 1e9), engine).memory
    return {part: size / 1e6 for part, size in memory.items()}


def measure(
    architecture: str, batch_size: int, chunk_size: int | None, device: str, dtype: str, engine: str = "ddp"
) -> float:
    """Returns the megabytes that the steps add to those of a process that has its data and has trained a little."""
    torch.manual_seed(0)
    small, config = {"hidden_size": 32, "num_hidden_layers": 1}, build_config(architecture)
    vision = small | {"image_size": 32, "patch_size": 16}
    first = ClipHfConfig(text_config=small, vision_config=vision, projection_dim=32)
    pairs = NoisePairs(config, NUM_STEPS * batch_size)
    steps(first, NoisePairs(first, NUM_STEPS * 2), None, device, dtype, engine)
    before = forget_peak()
    steps(config, pairs, chunk_size, device, dtype, engine)
    return peak_megabytes() - before


def steps(
    config: ClipHfConfig, pairs: NoisePairs, chunk_size: int | None, device: str, dtype: str, engine: str
) -> None:
    """Takes the steps."""
    with tempfile.TemporaryDirectory() as folder:
        args = ClipTrainingArguments(
            folder,
            use_cpu=device == "cpu",
            bf16=dtype == "bfloat16",
            max_steps=NUM_STEPS,
            global_batch_size=len(pairs) // NUM_STEPS,
            grad_cache_chunk_size=chunk_size,
            warmup_steps=0,
            save_strategy="no",
            disable_tqdm=True,
            dataloader_num_workers=0,  # this process alone is measured
            deepspeed=None if engine == "ddp" else str(RECIPES / f"{engine}.json"),
        )
        ClipTrainer(ClipHfModel(config), args, lambda batch: batch, pairs).train()


def measure_two(*case: Any) -> float:
    """Returns what `measure` does in the first of two processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "megabytes.json")
        subprocess.run([*launch, "--output", str(file), "--case", json.dumps(case)], check=True, capture_output=True)
        return json.loads(file.read_text(encoding="utf-8"))


def main() -> None:
    """Measures each case, prints and saves."""
    parser = make_parser(__file__, __doc__)
    add_device(parser)
    parser.add_argument("--case", type=json.loads, help="what each of two processes measures, on which this is run")
    args = parser.parse_args()
    if args.case is not None:
        megabytes = measure(*args.case)
        if os.environ["RANK"] == "0":
            args.output.write_text(json.dumps(megabytes), encoding="utf-8")
        return
    # Blocks of a page and more go back as soon as they are free; glibc would keep ever larger ones for later.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    runs = [(*case, "ddp", 1) for case in (CASES if args.device == "cpu" else CASES_ON_GPU)]
    runs += [(*case, 2) for case in CASES_OF_TWO if args.device == "cpu"]
    cases = []
    for architecture, batch_size, chunk_size, engine, num_devices in tqdm(runs, desc="Trainings"):
        length = text_length(build_config(architecture), batch_size // num_devices, chunk_size, args.device)
        facts = {"architecture": architecture, "batch_size": batch_size, "chunk_size": chunk_size}
        facts |= {"text_length": length, "engine": engine, "num_devices": num_devices}
        parts = plan_case(**facts, bf16=args.dtype == "bfloat16")
        what = (architecture, batch_size, chunk_size, args.device, args.dtype, engine)
        planned = sum(parts.values())
        measured = in_fresh_process(measure, *what) if num_devices == 1 else measure_two(*what)
        case = {"case": f"{architecture}, {batch_size} pairs, chunks of {chunk_size or batch_size // num_devices}"}
        case["case"] += f", two processes, {engine}" if num_devices > 1 else ""
        case |= facts | {"planned_megabytes": planned, "measured_megabytes": measured}
        case |= {"ratio": planned / measured, **parts}
        if parts["activations"] > planned / 2:
            case["ratio_of_activations"] = parts["activations"] / (measured - planned + parts["activations"])
        cases.append(case)
    for case in cases:
        print(
            f"{case['case']:60}{case['planned_megabytes']:10,.0f} MB planned"
            f"{case['measured_megabytes']:10,.0f} MB measured, {case['ratio']:.2f}"
            + (f", activations {case['ratio_of_activations']:.2f}" if "ratio_of_activations" in case else "")
        )
    write(args.output, "Planned memory of a training", "megabytes", args, cases=cases)
    ratios = [value for case in cases for name, value in case.items() if name.startswith("ratio")]
    if any(abs(ratio - 1) > TOLERANCE for ratio in ratios):
        sys.exit(f"some are more than {TOLERANCE:.0%} apart")


if __name__ == "__main__":
    main()
