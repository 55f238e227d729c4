"""Trains a tiny model on the samples of a source and writes the loss of each step, to be killed and started again.

    torchrun --nproc_per_node 2 tests/distributed/run_resume.py options.json

For each step, rank 0 adds a line to `losses` in the output folder: its number and the loss, every bit of it; and
every rank adds one to its `samples_RANK`: the number and what is in its batch.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from clip_hf import ClipHfConfig, ClipHfImageProcessor, ClipHfModel, ClipHfProcessor, ClipHfTokenizer
from clip_hf.data.sources import open_source
from clip_hf.data.training_pairs import TrainingPairs
from clip_hf.training import ClipTrainer, ClipTrainingArguments, resumable_trainer
from clip_hf.training.checkpoints import publish
from tests.distributed.run_engines import deepspeed_config
from tests.tiny_models import TEXT, VISION

GLOBAL_BATCH_SIZE = 8
SECONDS_OF_WRITING = 0.2  # at least, for each checkpoint: long enough to be killed in


class WritingTrainer(ClipTrainer):
    """Writes the global loss of each step before it is taken."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        ids = " ".join(args[1]["sample_ids"])
        loss = super().training_step(*args, **kwargs)
        mean = self.accelerator.reduce(loss.detach().clone(), "mean").item()
        self._add_line(f"samples_{self.args.process_index}", ids)
        if self.args.process_index == 0:
            self._add_line("losses", mean.hex())
        return loss

    def _add_line(self, name: str, content: str) -> None:
        with open(Path(self.args.output_dir, name), "a", encoding="utf-8") as file:
            file.write(f"{self.state.global_step} {content}\n")


def publish_slowly(*args: Any) -> Path:
    time.sleep(SECONDS_OF_WRITING)
    return publish(*args)


def main() -> None:
    torch.set_num_threads(1)
    resumable_trainer.publish = publish_slowly
    options = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    args = ClipTrainingArguments(
        output_dir=options["output_dir"],
        use_cpu=True,
        max_steps=-1 if options["num_epochs"] else options["num_steps"],
        num_train_epochs=options["num_epochs"] or 1,
        global_batch_size=GLOBAL_BATCH_SIZE,
        grad_cache_chunk_size=3,
        learning_rate=1e-3,
        warmup_steps=2,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=2,
        dataloader_num_workers=options["num_workers"],
        disable_tqdm=True,
        report_to="none",
        deepspeed=deepspeed_config(options["engine"]),
    )
    Path(args.output_dir).mkdir(exist_ok=True)
    tokenizer = ClipHfTokenizer.from_pretrained(options["tokenizer"])
    dropout = {"attention_dropout": 0.2}
    text_config = TEXT | dropout | {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    set_seed(0)
    model = ClipHfModel(ClipHfConfig(text_config=text_config, vision_config=VISION["vit"] | dropout))
    size = model.config.vision_config.image_size
    processor = ClipHfProcessor(ClipHfImageProcessor(size=size, crop_size=size), tokenizer)
    source = open_source(options["source"], streaming=options["streaming"])
    pairs = TrainingPairs([source], processor, num_lanes=2, window=16)
    trainer = WritingTrainer(model, args, train_dataset=pairs)
    trainer.train(resume_from_checkpoint=True)
    if args.process_index == 0:
        Path(args.output_dir, "is_complete").touch()
    trainer.end()


if __name__ == "__main__":
    main()
