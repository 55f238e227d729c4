"""Takes one optimizer step on a contrastive batch of the paper's size in one process, in little memory.

Ours is ClipTrainer's step: embeddings of all pairs chunk by chunk, one loss over all of them, tiled, the chunks again
with their gradients, and AdamW. The peer is a plain step of transformers' CLIPModel of the same size, whose batch is
doubled until it exceeds the memory. The floor has the matrix products of our step. Images and texts are noise.
On a GPU, memory is what its tensors take. Linux and macOS.

    python scripts/benchmarks/large_batch_step.py --batch_size 32768
"""

import tempfile
import time
from argparse import Namespace
from typing import Any

import torch
from measuring.floors import Floor
from measuring.memory import in_fresh_process, peak_megabytes
from measuring.noise import NoisePairs, small_config
from measuring.options import add_device, make_parser
from measuring.reports import save
from measuring.rounds import compare
from measuring.steps import stepper
from torch import Tensor
from transformers import CLIPModel

from clip_hf import ClipHfConfig, ClipHfModel, ClipTrainer, ClipTrainingArguments
from clip_hf.conversion.foreign_configs import to_transformers_config
from clip_hf.losses import clip_loss


def config_of(args: Namespace) -> ClipHfConfig:
    """Returns the configuration of both models."""
    return small_config(args.width, args.num_layers, args.image_size, args.patch_size)


def noise(args: Namespace, batch_size: int) -> dict[str, Tensor]:
    """Returns a batch where the models are."""
    batch = NoisePairs(config_of(args), batch_size).__getitems__(slice(None))
    return {name: part.to(args.device) for name, part in batch.items()}


def autocast(args: Namespace) -> torch.autocast:
    """Returns the context in which the towers compute."""
    return torch.autocast(args.device, getattr(torch, args.dtype), enabled=args.dtype != "float32")


def measure_ours(args: Namespace) -> dict[str, Any]:
    """Returns time, memory and the log of our step, to be called in a fresh process."""
    torch.manual_seed(0)
    model = ClipHfModel(config_of(args))
    pairs = NoisePairs(model.config, args.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        training_args = ClipTrainingArguments(
            output_dir=folder,
            use_cpu=args.device == "cpu",
            bf16=args.dtype == "bfloat16",
            max_steps=1,
            per_device_train_batch_size=args.batch_size,
            grad_cache_chunk_size=args.grad_cache_chunk_size,
            warmup_steps=0,
            logging_steps=1,
            save_strategy="no",
            dataloader_num_workers=0,
            disable_tqdm=True,
        )
        trainer = ClipTrainer(model, training_args, lambda batch: batch, pairs)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    log = {key: trainer.state.log_history[0][key] for key in ("loss", "grad_norm", "scale")}
    title = f"{args.image_size} pixels, {model.num_parameters() / 1e6:.1f}M parameters"
    return {"title": title, "seconds": seconds, "gigabytes": peak_megabytes() / 1e3, "log": log}


def measure_floor(args: Namespace) -> Floor:
    """Returns the floor of our step, to be called in a fresh process."""
    model = ClipHfModel(config_of(args)).to(args.device)
    batch = noise(args, args.batch_size)

    def compute_gradients() -> None:
        with autocast(args):
            output = model(**batch, chunk_sizes=(args.grad_cache_chunk_size, args.grad_cache_chunk_size))
        clip_loss(output.image_embeds, output.text_embeds, output.scale).backward()

    floor = Floor.of(compute_gradients, args.device, args.dtype)
    floor()
    return floor


def measure_peer(args: Namespace, batch_size: int) -> dict[str, float] | None:
    """Returns time and memory of the peer's step, or None without memory for it, to be called in a fresh process."""
    torch.manual_seed(0)
    model = CLIPModel(to_transformers_config(config_of(args))).to(args.device)
    try:
        batch = noise(args, batch_size)
        pixels = batch["pixel_values"] / 255

        def loss() -> Tensor:
            with autocast(args):
                return model(input_ids=batch["input_ids"], pixel_values=pixels, return_loss=True).loss

        step = stepper(model, loss)
        start = time.perf_counter()
        step()
        if args.device != "cpu":
            torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return None
    return {"seconds": time.perf_counter() - start, "gigabytes": peak_megabytes() / 1e3}


def measure(args: Namespace) -> dict[str, Any]:
    """Returns one case: our step, and the peer's largest."""
    ours = in_fresh_process(measure_ours, args)
    batch_size, peers = args.peer_batch_size, {}
    while peer := in_fresh_process(measure_peer, args, batch_size):
        peers[batch_size] = peer
        if peer["gigabytes"] > args.most_gigabytes:
            break
        batch_size *= 2
    floor = in_fresh_process(measure_floor, args)
    title = f"{args.batch_size:,} pairs of {ours['title']}"
    seconds = {"clip_hf": [ours["seconds"]], "floor": [floor.seconds]}
    case = compare(title, seconds, args.batch_size, floor=str(floor))
    limit = f"exceeds {args.most_gigabytes:g} GB" if batch_size in peers else "does not fit"
    note = f"; {ours['gigabytes']:.2f} GB, where transformers' plain step {limit} with {batch_size:,} pairs"
    return case | {"note": note, "most_gigabytes": args.most_gigabytes, "log": ours["log"], "transformers": peers}


def main() -> None:
    """Measures, prints and saves."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--batch_size", type=int, default=32_768, help="pairs in our batch")
    parser.add_argument("--peer_batch_size", type=int, default=256, help="pairs in the peer's first batch")
    parser.add_argument("--most_gigabytes", type=float, default=4.0, help="that the peer may hold")
    parser.add_argument("--grad_cache_chunk_size", type=int, default=256, help="images and texts held at a time")
    parser.add_argument("--image_size", type=int, default=32, help="pixels")
    parser.add_argument("--patch_size", type=int, default=8, help="pixels")
    parser.add_argument("--width", type=int, default=128, help="of both towers and the joint embedding space")
    parser.add_argument("--num_layers", type=int, default=4, help="of each tower")
    add_device(parser)
    args = parser.parse_args()
    save("Largest step", "pairs", args, [measure(args)])


if __name__ == "__main__":
    main()
