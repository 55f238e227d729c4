"""Trains tiny models with ClipTrainer on the engines of a list of cases, for comparison with one plain process.

    torchrun --nproc_per_node 2 tests/distributed/run_engines.py cases.json folder

Rank 0 writes what came of each case to `folder/<name of the case>.pt`.
"""

import contextlib
import copy
import gc
import itertools
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor, nn
from torch._dynamo.utils import counters

from clip_hf import ClipHfModel
from clip_hf.training import ClipTrainer, ClipTrainingArguments
from clip_hf.training.engine_args import configure_fsdp
from scripts.benchmarks.measuring.collectives import CollectiveCounter
from tests.tiny_pairs import TinyCaptions, TinyPairs, collate, collate_captions

BATCH_SIZE = 16
NUM_STEPS = 3
NUM_EVAL_PAIRS = 13  # fills no batch of evaluation, on however many processes
MAX_GRAD_NORM = 1.0
LEARNING_RATES = {"sgd": 0.02, "adamw_torch": 1e-3}


def train(case: dict[str, Any], folder: Path, world_size: int = 1) -> dict[str, Any]:
    """What training left: log, parameters, rates, and how the model evaluates.

    Args:
        case: "name", "engine", "optim", and "model", the folder of the model to begin with; maybe "num_pairs",
            "captions", whether to evaluate images with several texts as well, "counted", whether to count the bytes
            sent to reduce gradients, and arguments of training by their own names under "arguments"; `use_cpu` is one,
            and true by default.
        folder: for the output.
        world_size: number of processes.
    """
    torch._dynamo.reset()
    counters.clear()
    arguments = {"use_cpu": True} | case.get("arguments", {})
    args = ClipTrainingArguments(
        output_dir=str(folder / case["name"]),
        max_steps=NUM_STEPS,
        per_device_train_batch_size=BATCH_SIZE // world_size,
        per_device_eval_batch_size=4,
        train_sampling_strategy="sequential",
        optim=case["optim"],
        learning_rate=LEARNING_RATES[case["optim"]],
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_grad_norm=MAX_GRAD_NORM,
        logging_steps=1,
        save_strategy="no",
        dataloader_num_workers=0,
        disable_tqdm=True,
        deepspeed=deepspeed_config(case["engine"]),
        **arguments,
    )
    model = ClipHfModel.from_pretrained(case["model"])
    pairs = TinyPairs(model.config, case.get("num_pairs", NUM_STEPS * BATCH_SIZE))
    trainer = ClipTrainer(model, args, train_dataset=pairs, data_collator=collate)
    metrics, caption_metrics = {}, {}
    is_sharded_by_hand = case["engine"] == "fsdp2" and args.use_cpu
    counter = CollectiveCounter(world_size)
    with counter if case.get("counted", False) else contextlib.nullcontext():
        counter.is_counting = True
        log = train_fully_sharded(trainer) if is_sharded_by_hand else trainer.train()
    if not is_sharded_by_hand:
        metrics = trainer.evaluate(TinyPairs(model.config, NUM_EVAL_PAIRS))
        if case.get("captions", False):
            trainer.data_collator = collate_captions
            caption_metrics = trainer.evaluate(TinyCaptions(model.config, NUM_EVAL_PAIRS))
        trainer.save_model()
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
    with gathered(trainer.model, case["engine"]):
        parameters = {name: whole(parameter) for name, parameter in trainer.model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in trainer.model.named_buffers()}
    return {
        "log": log,
        "reduced": sum(num_bytes for name, num_bytes in counter.sent.items() if "reduce" in name),
        "rates": decays_and_rates(trainer, case["engine"]),
        "parameters": parameters,
        "buffers": buffers,
        "num_graphs": counters["stats"]["unique_graphs"],
        "metrics": metrics,
        "caption_metrics": caption_metrics,
    }


def deepspeed_config(engine: str) -> dict[str, Any] | None:
    """The configuration that is shipped for a stage, its buckets small enough for a tiny model to fill several."""
    if not engine.startswith("zero"):
        return None
    path = Path(__file__).parents[2] / "scripts" / "deepspeed" / f"{engine}.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    zero = config["zero_optimization"] | {"reduce_bucket_size": 2000}
    if zero["stage"] == 3:
        zero |= {"stage3_prefetch_bucket_size": 2000, "stage3_param_persistence_threshold": 0}
    return config | {"zero_optimization": zero}


def train_fully_sharded(trainer: ClipTrainer) -> list[dict[str, float]]:
    """FSDP2 without Trainer's loop, which knows it on accelerators alone.

    The model is divided by accelerate, as it would be there; step and optimizer are the trainer's.
    """
    args = copy.copy(trainer.args)
    args.fsdp = True
    args.fsdp_plugin_args = args._process_fsdp_args()
    configure_fsdp(args)
    accelerator = SimpleNamespace(  # what accelerate's division of a model reads of the one that it refuses to be
        state=SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin(**args.fsdp_plugin_args)),
        device=trainer.args.device,
        is_main_process=dist.get_rank() == 0,
        mixed_precision="no",
        torch_device_mesh=None,
    )
    fsdp2_prepare_model(accelerator, trainer.model)
    trainer.is_fsdp_enabled = True
    optimizer = trainer.create_optimizer()
    scheduler = trainer.create_scheduler(NUM_STEPS, optimizer)
    trainer.state.max_steps = NUM_STEPS
    log = []
    batches = trainer.get_train_dataloader()
    for batch in itertools.islice(itertools.chain.from_iterable(itertools.repeat(batches)), NUM_STEPS):
        trainer.callback_handler.on_step_begin(trainer.args, trainer.state, trainer.control)
        loss = trainer.training_step(trainer.model, batch)
        grad_norm = nn.utils.clip_grad_norm_(trainer.model.parameters(), MAX_GRAD_NORM).full_tensor()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        dist.all_reduce(loss)
        entry = {"loss": loss.item() / dist.get_world_size(), "grad_norm": grad_norm.item()}
        log.append(entry | trainer._training_log.report())
        trainer.state.global_step += 1
    return log


def gathered(model: nn.Module, engine: str) -> Any:
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=engine.startswith("zero3"))


def decays_and_rates(trainer: ClipTrainer, engine: str) -> dict[str, tuple[float, float]]:
    """Weight decay and learning rate of each parameter, as the engine's optimizer has them."""
    groups = trainer.optimizer.param_groups
    members = [group["params"] for group in groups]
    if engine in ("zero1", "zero2"):  # whose groups hold one flat tensor each
        members = trainer.optimizer.optimizer.bit16_groups
    elif engine.startswith("zero3"):  # whose groups are divided further
        optimizer = trainer.optimizer.optimizer
        members = optimizer.fp16_groups
        groups = [groups[optimizer.sub_group_to_group_id[number]] for number in range(len(members))]
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    return {
        names[id(parameter)]: (group["weight_decay"], float(group["lr"]))
        for group, parameters in zip(groups, members, strict=True)
        for parameter in parameters
    }


def whole(tensor: Tensor) -> Tensor:
    """A copy of the whole of a tensor, of which FSDP2 leaves a part on each rank."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().cpu().clone()


def main() -> None:
    torch.set_num_threads(1)
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # or a GPU rounds the products of convolutions to 10 bits
    cases, folder = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    # DeepSpeed goes last: accelerate does not forget it.
    for case in sorted(cases, key=lambda case: case["engine"].startswith("zero")):
        results = train(case, folder, world_size=int(os.environ["WORLD_SIZE"]))
        if dist.get_rank() == 0:
            torch.save(results, folder / f"{case['name']}.pt")
        gc.collect()  # transformers asks the last arguments alive for DeepSpeed's stage
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
