"""Trains on two processes, of which rank 1 cannot read a pair of its second batch, is killed, or reads NaN."""

import math
import os
import signal
import sys
from typing import Any

import torch

from clip_hf.distributed import rank
from clip_hf.training import ClipTrainer, ClipTrainingArguments
from tests.tiny_models import tiny_model
from tests.tiny_pairs import TinyPairs, collate


class DamagedPairs(TinyPairs):
    """Pairs of which number 12 cannot be read, is the end of who reads it, or has an image of NaN."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 12 and sys.argv[-1] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 12 and sys.argv[-1] == "raises":
            raise ValueError(f"pair-12 cannot be read, says rank {rank()}")
        pair = super().__getitem__(index)
        return pair | {"pixel_values": pair["pixel_values"] / (math.nan if index == 12 else 255)}


def main() -> None:
    torch.set_num_threads(1)
    args = ClipTrainingArguments(
        output_dir=sys.argv[-2],
        use_cpu=True,
        max_steps=4,
        per_device_train_batch_size=4,
        train_sampling_strategy="sequential",
        warmup_steps=0,
        save_strategy="steps",
        save_steps=1,
        dataloader_num_workers=0,
        disable_tqdm=True,
    )
    model = tiny_model("vit")
    ClipTrainer(model, args, collate, DamagedPairs(model.config, 32)).train()


if __name__ == "__main__":
    main()
