"""Times a training step: forward, contrastive loss, backward and AdamW, on noise and captions of real lengths.

OpenCLIP pads every caption to 77 tokens, transformers each batch to its longest; ours compute no padding, and on a CPU
each distinct beginning of the captions once; on a GPU, ours in chunks compute it, too. Each as it comes and compiled,
and on a GPU OpenCLIP with cuDNN's fastest kernels, for which its training asks; ours does not, to resume alike.

    python scripts/benchmarks/training_step.py --architectures ViT-B/32 RN50 --batch_size 64
"""

from argparse import Namespace
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from measuring.captions import read_captions
from measuring.floors import Floor
from measuring.options import add_captions, add_device, make_parser
from measuring.reports import save
from measuring.rounds import compare, largest_difference, take_turns
from measuring.steps import stepper
from torch import Tensor, nn

from clip_hf.losses import clip_loss

AIMS: dict[str, dict[str, float | None]] = {
    "ViT-B/32": {"open_clip": 1.8, "transformers": 1.1},
    "RN50": {"open_clip": 1.3},
}
CAUSES = {
    "cpu": "Most of the arithmetic is the image tower's, which all sides compute alike; beside products, a step "
    "writes activations to memory that the system hands out anew, normalises, and updates all weights.",
    "cuda": "Most of the arithmetic is the image tower's, which all sides compute alike, and a GPU waits for kernels "
    "that are started one by one.",
}
AIMS_ON_GPU: dict[str, float | None] = {"open_clip": 1.3}


def find_losses(
    architecture: str, captions: list[str], args: Namespace
) -> tuple[dict[str, nn.Module], dict[str, Callable[[], Tensor]], int]:
    """Returns the models and what computes their losses, by name, and the tokens of the longest caption."""
    from measuring.models import build_models, build_tokenizers
    from open_clip import ClipLoss

    built, tokenizers = build_models(architecture, args.device), build_tokenizers()
    models = {name: model for name, model in built._asdict().items() if model is not None}
    size = built.clip_hf.config.vision_config.image_size
    pixels = torch.randn(len(captions), 3, size, size, device=args.device)
    full_ids = tokenizers.open_clip(captions).to(args.device)
    options = {"padding": True, "truncation": True, "return_tensors": "pt"}
    our_ids = tokenizers.clip_hf(captions, **options)["input_ids"].to(args.device)
    batch = tokenizers.transformers(captions, **options).to(args.device)
    open_clip_loss = ClipLoss()

    def ours(model: nn.Module) -> Tensor:
        chunk_sizes = (args.grad_cache_chunk_size, args.grad_cache_chunk_size)
        output = model(input_ids=our_ids, pixel_values=pixels, chunk_sizes=chunk_sizes)
        return clip_loss(output.image_embeds, output.text_embeds, output.scale)

    losses = {
        "clip_hf": ours,
        "open_clip": lambda model: open_clip_loss(*model(pixels, full_ids)),
        "transformers": lambda model: model(**batch, pixel_values=pixels, return_loss=True).loss,
    }
    if args.compile:
        compiled = deepcopy(built.clip_hf)
        for tower in (compiled.vision_model, compiled.text_model):
            tower.compile()  # as `--torch_compile` of scripts/train.py does
        peers = {name: torch.compile(model) for name, model in models.items() if name != "clip_hf"}
        models |= {f"{name} compiled": model for name, model in ({"clip_hf": compiled} | peers).items()}
    ways = {name: lambda n=name, m=model: losses[n.split()[0]](m) for name, model in models.items()}
    return models, ways, our_ids.shape[1]


def as_trained(name: str, step: Callable[[], None]) -> Callable[[], None]:
    """Returns a step with the choice of cuDNN's kernels that the training of that name makes."""

    def chosen_step() -> None:
        torch.backends.cudnn.benchmark = name.startswith("open_clip")
        step()

    return chosen_step


def measure(architecture: str, args: Namespace, captions: list[str]) -> dict[str, Any]:
    """Returns one case: the steps of one architecture."""
    models, losses, length = find_losses(architecture, captions, args)
    kind, dtype = torch.device(args.device).type, getattr(torch, args.dtype)
    # First of all, as this is what puts the models into training mode: compiled, they would be compiled twice.
    steps = {name: as_trained(name, stepper(models[name], loss)) for name, loss in losses.items()}
    with torch.autocast(kind, dtype, enabled=args.dtype != "float32"):
        difference = largest_difference({name: loss().detach() for name, loss in losses.items()}, args.dtype)
        floor = Floor.of(lambda: losses["clip_hf"]().backward(), args.device, args.dtype)
        seconds = take_turns(steps | {"floor": floor}, args.repeats, architecture)
    return compare(
        f"{architecture}, {len(captions)} pairs, longest caption {length} tokens",
        seconds | {"floor": [floor.seconds]},
        len(captions),
        aims=AIMS.get(architecture) if kind == "cpu" else AIMS_ON_GPU,
        cause=CAUSES.get(kind, ""),
        floor=str(floor),
        largest_difference_of_losses=difference,
    )


def main() -> None:
    """Measures, prints and saves."""
    parser = make_parser(__file__, __doc__, repeats=3)
    parser.add_argument("--architectures", nargs="+", default=list(AIMS), help="of the models")
    add_captions(parser)
    parser.add_argument("--batch_size", type=int, default=64, help="pairs in a step")
    parser.add_argument("--grad_cache_chunk_size", type=int, help="pairs that ours embed at a time (default: all)")
    parser.add_argument("--no_compile", dest="compile", action="store_false", help="measure each only as it comes")
    add_device(parser)
    args = parser.parse_args()
    captions = read_captions(args.captions, args.batch_size)
    save("Training step", "pairs", args, [measure(name, args, captions) for name in args.architectures])


if __name__ == "__main__":
    main()
