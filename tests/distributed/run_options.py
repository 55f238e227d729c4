"""Trains with the options of a list of cases, as scripts/train.py does, and saves what it would.

    torchrun --nproc_per_node 2 tests/distributed/run_options.py cases.json folder

What came of each case lies in `folder/<name of the case>`.
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import set_seed

from clip_hf import ClipHfModel
from clip_hf.training import ClipTrainer, ClipTrainingArguments
from clip_hf.training.lora import Adapter
from tests.distributed.run_engines import BATCH_SIZE, deepspeed_config
from tests.tiny_pairs import TinyPairs, collate

NUM_STEPS = 4


def train(case: dict[str, Any], folder: Path, world_size: int = 1) -> None:
    """Trains, and saves the model.

    Args:
        case: "name", "engine", and "model", the folder of the model to begin with; maybe "lora_rank", and arguments of
            training by their own names under "arguments".
        folder: for the output.
        world_size: number of processes.
    """
    args = ClipTrainingArguments(
        output_dir=str(folder / case["name"]),
        use_cpu=True,
        max_steps=NUM_STEPS,
        per_device_train_batch_size=BATCH_SIZE // world_size,
        grad_cache_chunk_size=3,
        train_sampling_strategy="sequential",
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        warmup_steps=0,
        save_strategy="no",
        report_to="none",
        dataloader_num_workers=0,
        disable_tqdm=True,
        deepspeed=deepspeed_config(case["engine"]),
        **case["arguments"],
    )
    set_seed(args.seed)
    model = ClipHfModel.from_pretrained(case["model"])
    adapter = Adapter(model, case["lora_rank"], args) if "lora_rank" in case else None
    pairs = TinyPairs(model.config, NUM_STEPS * BATCH_SIZE)
    trainer = ClipTrainer(model, args, train_dataset=pairs, data_collator=collate)
    trainer.train()
    if adapter is not None:
        adapter.save_and_merge(args.output_dir, args.should_save)
    trainer.save_model()


def main() -> None:
    torch.set_num_threads(1)
    cases, folder = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    for case in cases:
        train(case, folder, world_size=int(os.environ["WORLD_SIZE"]))
        gc.collect()  # transformers asks the last arguments alive for DeepSpeed's stage
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
