"""Times a training step whose batch is embedded in chunks, against the same step on the whole batch at once.

The arithmetic says 4/3 of the time: a chunk is embedded once without gradients, and again for its own. That time buys
memory: the activations of one chunk in place of those of the batch.

    python scripts/benchmarks/chunked_step.py --architectures ViT-B/32 --batch_size 64 --grad_cache_chunk_size 16
"""

from argparse import Namespace
from functools import partial
from typing import Any

import torch
from measuring.captions import read_captions
from measuring.floors import Floor
from measuring.options import add_captions, add_device, make_parser
from measuring.reports import save
from measuring.rounds import compare, largest_difference, take_turns
from measuring.steps import stepper
from torch import Tensor

from clip_hf import ClipHfConfig, ClipHfModel, ClipHfTokenizer
from clip_hf.losses import clip_loss

MOST_TIME = 1.45  # of a step in chunks, in steps on the whole batch


def measure(architecture: str, args: Namespace, captions: list[str]) -> dict[str, Any]:
    """Returns one case: the steps of one architecture, from equal weights."""
    torch.manual_seed(0)
    tokenizer = ClipHfTokenizer.train(captions, vocab_size=4096)
    config = ClipHfConfig.from_architecture(architecture, text_config={"vocab_size": len(tokenizer)})
    model = ClipHfModel(config).eval().to(args.device)
    size = config.vision_config.image_size
    pixels = torch.randn(len(captions), 3, size, size, device=args.device)
    ids = tokenizer(captions, padding=True, return_tensors="pt")["input_ids"].to(args.device)

    def loss(chunk_size: int | None) -> Tensor:
        output = model(input_ids=ids, pixel_values=pixels, chunk_sizes=(chunk_size, chunk_size))
        return clip_loss(output.image_embeds, output.text_embeds, output.scale)

    chunk_size = args.grad_cache_chunk_size
    ways = {f"clip_hf, chunks of {chunk_size}": partial(loss, chunk_size), "whole batch": partial(loss, None)}
    with torch.autocast(pixels.device.type, getattr(torch, args.dtype), enabled=args.dtype != "float32"):
        difference = largest_difference({name: way().detach() for name, way in ways.items()}, args.dtype)
        floor = Floor.of(lambda: loss(chunk_size).backward(), args.device, args.dtype)
        steps = {name: stepper(model, way) for name, way in ways.items()}
        seconds = take_turns(steps | {"floor": floor}, args.repeats, architecture)
    return compare(
        f"{architecture}, {len(captions)} pairs",
        seconds | {"floor": [floor.seconds]},
        len(captions),
        aims={"whole batch": round(1 / MOST_TIME, 2)},
        floor=str(floor),
        largest_difference_of_losses=difference,
    )


def main() -> None:
    """Measures, prints and saves."""
    parser = make_parser(__file__, __doc__, repeats=2)
    parser.add_argument("--architectures", nargs="+", default=["ViT-B/32", "RN50"], help="of the models")
    add_captions(parser)
    parser.add_argument("--batch_size", type=int, default=64, help="pairs in a step")
    parser.add_argument("--grad_cache_chunk_size", type=int, default=16, help="pairs that are embedded at a time")
    add_device(parser)
    args = parser.parse_args()
    captions = read_captions(args.captions, args.batch_size)
    save("Training step in chunks", "pairs", args, [measure(name, args, captions) for name in args.architectures])


if __name__ == "__main__":
    main()
