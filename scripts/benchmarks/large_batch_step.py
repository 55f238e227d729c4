"""Takes one optimizer step on a contrastive batch of the paper's size in one process, and reports time and memory.

The step is ClipTrainer's own: embeddings of all pairs chunk by chunk, one loss over all of them, tiled, the chunks
again with their gradients, and AdamW. Images and texts are noise. Linux and macOS.

    python scripts/benchmarks/large_batch_step.py --per_device_train_batch_size 32768
"""

import tempfile
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import torch
from measuring.memory import peak_megabytes
from measuring.noise import NoisePairs, small_config
from measuring.reports import RESULTS, save
from measuring.rounds import compare

from clip_hf import ClipHfModel, ClipTrainer, ClipTrainingArguments


def measure(args: Namespace) -> dict[str, Any]:
    """Time, memory and the log of one step."""
    torch.manual_seed(0)
    model = ClipHfModel(small_config(args.width, args.num_layers, args.image_size, args.patch_size))
    pairs = NoisePairs(model.config, args.per_device_train_batch_size)
    before = peak_megabytes()
    with tempfile.TemporaryDirectory() as folder:
        training_args = ClipTrainingArguments(
            output_dir=folder,
            use_cpu=True,
            max_steps=1,
            per_device_train_batch_size=args.per_device_train_batch_size,
            grad_cache_chunk_size=args.grad_cache_chunk_size,
            warmup_steps=0,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = ClipTrainer(model, training_args, lambda batch: batch, pairs)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    log = trainer.state.log_history[0]
    return compare(
        f"{len(pairs):,} pairs of {args.image_size} pixels, {model.num_parameters() / 1e6:.1f}M parameters",
        {"clip_hf": [seconds]},
        len(pairs),
        peak_gigabytes=round(peak_megabytes() / 1e3, 3),
        peak_gigabytes_before_the_step=round(before / 1e3, 3),
        most_gigabytes=4.0,
        log={key: log[key] for key in ("loss", "grad_norm", "scale")},
    )


def main() -> None:
    """Measures, prints and saves."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--per_device_train_batch_size", type=int, default=32_768, help="pairs in the batch")
    parser.add_argument("--grad_cache_chunk_size", type=int, default=256, help="images and texts held at a time")
    parser.add_argument("--image_size", type=int, default=32, help="pixels")
    parser.add_argument("--patch_size", type=int, default=8, help="pixels")
    parser.add_argument("--width", type=int, default=128, help="of both towers and the joint embedding space")
    parser.add_argument("--num_layers", type=int, default=4, help="of each tower")
    parser.add_argument("--output", type=Path, default=RESULTS / "large_batch_step.json", help="JSON file to write")
    args = parser.parse_args()
    case = measure(args)
    save(args.output, "Largest step", "pairs", args, [case])
    print(f"{case['peak_gigabytes']} GB at most; before the step, {case['peak_gigabytes_before_the_step']} GB")


if __name__ == "__main__":
    main()
