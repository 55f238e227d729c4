"""Takes one optimizer step on a contrastive batch of the paper's size in one process, and reports time and memory.

The step is ClipTrainer's own: embeddings of all pairs chunk by chunk, one loss over all of them, tiled, the chunks
again with their gradients, and AdamW. Images and texts are noise. Linux and macOS.

    python scripts/benchmarks/large_batch_step.py --per_device_train_batch_size 32768
"""

import json
import os
import platform
import resource
import sys
import tempfile
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clip_hf import ClipHfConfig, ClipHfModel, ClipTrainer, ClipTrainingArguments

CONTEXT_LENGTH = 77


class NoisePairs(Dataset):
    """Random images and texts; a batch is taken as a whole, without a copy of it in parts."""

    def __init__(self, config: ClipHfConfig, num_pairs: int) -> None:
        text, size = config.text_config, config.vision_config.image_size
        self.pixel_values = torch.randint(0, 256, (num_pairs, 3, size, size), dtype=torch.uint8)
        self.input_ids = torch.randint(0, text.bos_token_id, (num_pairs, CONTEXT_LENGTH))
        # Web captions are about a dozen tokens long, some much longer.
        ends = torch.empty(num_pairs, 1).log_normal_(2.5, 0.6).clamp(2, CONTEXT_LENGTH - 1).long()
        self.input_ids[torch.arange(CONTEXT_LENGTH) >= ends] = text.eos_token_id

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return {"pixel_values": self.pixel_values[indices], "input_ids": self.input_ids[indices]}


def peak_gigabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e9 / 1024)


def measure(args: Namespace) -> dict[str, Any]:
    """Time, memory and the log of one step."""
    torch.manual_seed(0)
    tower = {"hidden_size": args.width, "num_hidden_layers": args.num_layers}
    config = ClipHfConfig(
        projection_dim=args.width,
        text_config=tower | {"max_position_embeddings": CONTEXT_LENGTH},
        vision_config=tower | {"image_size": args.image_size, "patch_size": args.patch_size},
    )
    model, pairs = ClipHfModel(config), NoisePairs(config, args.per_device_train_batch_size)
    before = peak_gigabytes()
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
    return {
        "seconds": round(seconds, 1),
        "peak_gigabytes": round(peak_gigabytes(), 3),
        "peak_gigabytes_before_the_step": round(before, 3),
        "num_parameters": model.num_parameters(),
        **{key: log[key] for key in ("loss", "grad_norm", "scale")},
    }


def main() -> None:
    """Measures, prints and saves."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--per_device_train_batch_size", type=int, default=32_768, help="pairs in the batch")
    parser.add_argument("--grad_cache_chunk_size", type=int, default=256, help="images and texts held at a time")
    parser.add_argument("--image_size", type=int, default=32, help="pixels")
    parser.add_argument("--patch_size", type=int, default=8, help="pixels")
    parser.add_argument("--width", type=int, default=128, help="of both towers and the joint embedding space")
    parser.add_argument("--num_layers", type=int, default=4, help="of each tower")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "large_batch_step.json")
    args = parser.parse_args()
    report = {
        "date": date.today().isoformat(),
        "hardware": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "load_average": os.getloadavg(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **{key: value for key, value in vars(args).items() if key != "output"},
        **measure(args),
    }
    print(json.dumps(report, indent=2))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
