"""Measures the peak memory of training steps in fresh processes, beside what scripts/plan_run.py says of them.

One process on a CPU, in float32: two steps, so that Adam's averages are there. Images and texts are noise. Linux.

    python scripts/benchmarks/planned_memory.py
"""

import sys
import tempfile

import torch
from measuring.memory import forget_peak, in_fresh_process, peak_megabytes
from measuring.noise import NoisePairs
from measuring.options import make_parser
from measuring.reports import write
from tqdm import tqdm

from clip_hf import ClipHfConfig, ClipHfModel, ClipTrainer, ClipTrainingArguments
from clip_hf.training.planning import Hardware, Training, plan

CASES = [("ViT-B/32", 16, None), ("ViT-B/32", 96, 32), ("RN50", 8, None), ("RN50", 32, 16)]
TOLERANCE = 0.15


def measure(architecture: str, batch_size: int, chunk_size: int | None) -> float:
    """Returns the megabytes that two steps add to those of a process that has imported all and trained a little."""
    small = {"hidden_size": 32, "num_hidden_layers": 1}
    vision = small | {"image_size": 32, "patch_size": 16}
    steps(ClipHfConfig(text_config=small, vision_config=vision, projection_dim=32), 2, None)
    before = forget_peak()
    steps(ClipHfConfig.from_architecture(architecture), batch_size, chunk_size)
    return peak_megabytes() - before


def steps(config: ClipHfConfig, batch_size: int, chunk_size: int | None) -> None:
    """Takes two steps."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        args = ClipTrainingArguments(
            folder,
            use_cpu=True,
            max_steps=2,
            per_device_train_batch_size=batch_size,
            grad_cache_chunk_size=chunk_size,
            warmup_steps=0,
            save_strategy="no",
            disable_tqdm=True,
        )
        ClipTrainer(ClipHfModel(config), args, lambda batch: batch, NoisePairs(config, 2 * batch_size)).train()


def main() -> None:
    """Measures each case, prints and saves."""
    args = make_parser(__file__, __doc__).parse_args()
    one_device = Hardware(1, 1e12, 1.0, 1e9)
    cases = []
    for architecture, batch_size, chunk_size in tqdm(CASES, desc="Trainings"):
        # NoisePairs' texts are 77 tokens long, and padded to that where the longest of a group is.
        training = Training(ClipHfConfig.from_architecture(architecture), batch_size, chunk_size, text_length=30)
        planned = {part: size / 1e6 for part, size in plan(training, one_device, "ddp").memory.items()}
        measured = in_fresh_process(measure, architecture, batch_size, chunk_size)
        case = {"case": f"{architecture}, {batch_size} pairs, chunks of {chunk_size or batch_size}"}
        cases.append(case | {"planned_megabytes": sum(planned.values()), "measured_megabytes": measured} | planned)
    for case in cases:
        case["ratio"] = case["planned_megabytes"] / case["measured_megabytes"]
        print(
            f"{case['case']:36}{case['planned_megabytes']:10,.0f} MB planned"
            f"{case['measured_megabytes']:10,.0f} MB measured, {case['ratio']:.2f}"
        )
    write(args.output, "Planned memory of a training", "megabytes", args, cases=cases)
    if any(abs(case["ratio"] - 1) > TOLERANCE for case in cases):
        sys.exit(f"some are more than {TOLERANCE:.0%} apart")


if __name__ == "__main__":
    main()
