"""Counts the bytes that two processes exchange in a training step, engine by engine, against the README's formula.

Every collective of one step passes a counter: DDP's and DeepSpeed's, forward, backward and optimizer. What a process
sends for it is that of the ring algorithms: of W processes, (W - 1) / W of the whole result of an all-gather or of the
whole input of a reduce-scatter, both for an all-reduce.

    python scripts/benchmarks/communication.py --engines ddp zero2
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from measuring.collectives import CollectiveCounter, SecondStep
from measuring.noise import NoisePairs, small_config
from measuring.options import make_parser
from measuring.reports import write
from tqdm import tqdm

from clip_hf import ClipHfModel, ClipTrainer, ClipTrainingArguments

RECIPES = Path(__file__).parents[1] / "deepspeed"
# How often the size of all parameters goes round: gradients reduced and sent back, or, with ZeRO, kept in parts and
# the new parameters collected. DeepSpeed 0.19 reduces whole buckets in stages 1 and 2. Stage 3 collects the parameters
# a second time, for the backward pass, where they exceed `stage3_max_live_parameters`, here in `zero3_sparing`.
# In chunks, too, gradients are reduced once a step.
ROUNDS = {"ddp": 2, "zero1": 3, "zero2": 3, "zero3": 2, "zero3_sparing": 3}
ROUNDS |= {f"{engine}_chunked": ROUNDS[engine] for engine in ("ddp", "zero1", "zero2", "zero3")}
NUM_CHUNKS = 4
TOLERANCE = 0.01
SPARING = ("stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_param_persistence_threshold")


def count(engine: str, batch_size: int, file: Path) -> None:
    """Trains two steps on this process and its peers, and writes what was sent in the second."""
    torch.manual_seed(0)
    model = ClipHfModel(small_config(width=128, num_layers=4, image_size=32, patch_size=8))
    num_parameters, width = model.num_parameters(), model.config.projection_dim
    name, _, way = engine.partition("_")
    config = json.loads((RECIPES / f"{name}.json").read_text()) if name != "ddp" else None
    if way == "sparing":
        config["zero_optimization"] |= dict.fromkeys(SPARING, 0)
    args = ClipTrainingArguments(
        str(file.parent / "run"),
        use_cpu=True,
        max_steps=2,
        global_batch_size=batch_size,
        grad_cache_chunk_size=batch_size // 2 // NUM_CHUNKS if way == "chunked" else None,
        save_strategy="no",
        report_to=[],
        dataloader_num_workers=0,
        disable_tqdm=True,
        deepspeed=config,
    )
    trainer = ClipTrainer(model, args, lambda batch: batch, NoisePairs(model.config, 2 * batch_size))
    with CollectiveCounter(args.world_size) as counter:
        trainer.add_callback(SecondStep(counter))
        trainer.train()
    for_gradients, for_loss = ROUNDS[engine] * 4 * num_parameters, 8 * batch_size * width + 8 * batch_size
    formula = (for_gradients + for_loss) * (1 - 1 / args.world_size)
    if args.process_index == 0:
        sent = sum(counter.sent.values())
        facts = {"case": engine, "parameters": num_parameters, "bytes_sent": sent, "formula": round(formula)}
        file.write_text(json.dumps(facts | {"by_collective": counter.sent}))


def main() -> None:
    """Starts two processes for each engine, prints and saves."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--engines", nargs="+", choices=list(ROUNDS), default=list(ROUNDS), help="of the training")
    parser.add_argument("--batch_size", type=int, default=64, help="pairs of all processes")
    args = parser.parse_args()
    if "LOCAL_RANK" in os.environ:
        count(args.engines[0], args.batch_size, args.output)
        return
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for engine in tqdm(args.engines, desc="Engines"):
            file = Path(folder, f"{engine}.json")
            options = ["--engines", engine, "--batch_size", str(args.batch_size), "--output", str(file)]
            subprocess.run([*launch, *options], check=True, capture_output=True)
            cases.append(json.loads(file.read_text()))
    for case in cases:
        print(f"{case['case']:14}{case['bytes_sent']:14,} bytes sent by each process, formula {case['formula']:14,}")
    write(args.output, "Communication of a step, two processes", "bytes", args, cases=cases)
    if any(abs(case["bytes_sent"] / case["formula"] - 1) > TOLERANCE for case in cases):
        sys.exit(f"some are more than {TOLERANCE:.0%} away from the formula")


if __name__ == "__main__":
    main()
