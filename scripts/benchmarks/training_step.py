"""Times a training step: forward, contrastive loss, backward and AdamW, on noise and captions of real lengths.

OpenCLIP pads every caption to 77 tokens, transformers each batch to its longest, ours a few groups of like length.

    python scripts/benchmarks/training_step.py --architectures ViT-B/32 RN50 --batch_size 32
"""

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import torch
from measuring.captions import CAPTIONS_HELP, default_captions, read_captions
from measuring.floors import floor_of
from measuring.reports import RESULTS, save
from measuring.rounds import compare, take_turns
from measuring.steps import stepper
from torch import Tensor

from clip_hf.losses import clip_loss

TARGETS = {"ViT-B/32": 1.1, "RN50": 1.3}


def measure(architecture: str, args: Namespace, captions: list[str]) -> dict[str, Any]:
    """Returns one case: the steps of one architecture."""
    from measuring.models import build_models, build_tokenizers
    from open_clip import ClipLoss

    models, tokenizers = build_models(architecture), build_tokenizers()
    size = models.clip_hf.config.vision_config.image_size
    pixels = torch.randn(len(captions), 3, size, size)
    full_ids = tokenizers.open_clip(captions)
    options = {"padding": True, "truncation": True, "return_tensors": "pt"}
    ours_ids, batch = (
        tokenizers.clip_hf(captions, **options)["input_ids"],
        tokenizers.transformers(captions, **options),
    )
    open_clip_loss = ClipLoss()

    def our_loss() -> Tensor:
        chunk_sizes = (args.grad_cache_chunk_size, args.grad_cache_chunk_size)
        output = models.clip_hf(input_ids=ours_ids, pixel_values=pixels, chunk_sizes=chunk_sizes)
        return clip_loss(output.image_embeds, output.text_embeds, output.scale)

    losses = {"clip_hf": our_loss, "open_clip": lambda: open_clip_loss(*models.open_clip(pixels, full_ids))}
    if models.transformers is not None:
        losses["transformers"] = lambda: models.transformers(**batch, pixel_values=pixels, return_loss=True).loss
    difference = max((loss() - losses["open_clip"]()).abs().item() for loss in losses.values())
    floor = floor_of(lambda: our_loss().backward())
    steppers = {name: stepper(getattr(models, name), loss) for name, loss in losses.items()}
    seconds = take_turns(steppers | {"floor": floor}, args.repeats, architecture)
    case = compare(
        f"{architecture}, {len(captions)} pairs, longest caption {ours_ids.shape[1]} tokens",
        seconds,
        len(captions),
        target=TARGETS.get(architecture, 1.0),
        floor="the step's matrix products forward and backward, by torch.matmul",
        largest_difference_of_losses=difference,
    )
    rates = case["per_second"]
    return case | {"times_open_clip": round(rates["clip_hf"] / rates["open_clip"], 2)}


def main() -> None:
    """Measures, prints and saves."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--architectures", nargs="+", default=list(TARGETS), help="of the models")
    parser.add_argument("--captions", type=Path, default=default_captions(), help=CAPTIONS_HELP)
    parser.add_argument("--batch_size", type=int, default=32, help="pairs in a step")
    parser.add_argument("--grad_cache_chunk_size", type=int, help="pairs that ours embed at a time (default: all)")
    parser.add_argument("--repeats", type=int, default=4, help="turns of each way")
    parser.add_argument("--output", type=Path, default=RESULTS / "training_step.json", help="JSON file to write")
    args = parser.parse_args()
    captions = read_captions(args.captions, args.batch_size)
    cases = [measure(name, args, captions) for name in args.architectures]
    save(args.output, "Training step", "pairs", args, cases)


if __name__ == "__main__":
    main()
