"""Times a training step whose batch is embedded in chunks, against the same step on the whole batch at once.

The arithmetic says 4/3 of the time: a chunk is embedded once without gradients, and again for its own. That time buys
memory: the activations of one chunk in place of those of the batch.

    python scripts/benchmarks/chunked_step.py --architectures ViT-B/32 --batch_size 64 --grad_cache_chunk_size 16
"""

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import torch
from measuring.captions import CAPTIONS_HELP, default_captions, read_captions
from measuring.reports import RESULTS, save
from measuring.rounds import compare, take_turns
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
    model = ClipHfModel(config).eval()
    size = config.vision_config.image_size
    pixels = torch.randn(len(captions), 3, size, size)
    ids = tokenizer(captions, padding=True, return_tensors="pt")["input_ids"]

    def loss(chunk_size: int | None) -> Tensor:
        output = model(input_ids=ids, pixel_values=pixels, chunk_sizes=(chunk_size, chunk_size))
        return clip_loss(output.image_embeds, output.text_embeds, output.scale)

    chunk_size = args.grad_cache_chunk_size
    difference = (loss(chunk_size) - loss(None)).abs().item()
    ways = {f"clip_hf, chunks of {chunk_size}": lambda: loss(chunk_size), "whole batch": lambda: loss(None)}
    seconds = take_turns({name: stepper(model, way) for name, way in ways.items()}, args.repeats, architecture)
    return compare(
        f"{architecture}, {len(captions)} pairs",
        seconds,
        len(captions),
        target=round(1 / MOST_TIME, 2),
        largest_difference_of_losses=difference,
    )


def main() -> None:
    """Measures, prints and saves."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--architectures", nargs="+", default=["ViT-B/32", "RN50"], help="of the models")
    parser.add_argument("--captions", type=Path, default=default_captions(), help=CAPTIONS_HELP)
    parser.add_argument("--batch_size", type=int, default=64, help="pairs in a step")
    parser.add_argument("--grad_cache_chunk_size", type=int, default=16, help="pairs that are embedded at a time")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each way")
    parser.add_argument("--output", type=Path, default=RESULTS / "chunked_step.json", help="JSON file to write")
    args = parser.parse_args()
    captions = read_captions(args.captions, args.batch_size)
    cases = [measure(name, args, captions) for name in args.architectures]
    save(args.output, "Training step in chunks", "pairs", args, cases)


if __name__ == "__main__":
    main()
