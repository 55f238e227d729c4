"""Times image features: ours, OpenCLIP's and transformers', each as it comes and compiled, with equal weights.

The floor is the model's own matrix products, done by torch.matmul in turn with the others.

    python scripts/benchmarks/image_features.py --architectures ViT-B/32 RN50
"""

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring.floors import floor_of
from measuring.reports import RESULTS, save
from measuring.rounds import compare, take_turns

# Said in the results where the aim is missed.
BOUND = "Compiled, ours and the peers' take hardly more time than their matrix products: little is left to win."
TARGETS = {"ViT-B/32": 1.05, "ViT-L/14": 1.05, "RN50": 1.3}


def compare_encoders(architecture: str, batch_size: int, repeats: int) -> dict[str, Any]:
    """Returns one case: the encoders of one architecture."""
    from measuring.models import build_models

    models = build_models(architecture)
    size = models.clip_hf.config.vision_config.image_size
    pixels = torch.randn(batch_size, 3, size, size)
    encoders: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "clip_hf": lambda images: models.clip_hf.get_image_features(images).pooler_output,
        "open_clip": models.open_clip.encode_image,
    }
    if models.transformers is not None:
        encoders["transformers"] = lambda images: models.transformers.get_image_features(images).pooler_output
    expected = encoders["open_clip"](pixels)
    difference = max((encode(pixels) - expected).abs().max().item() for encode in encoders.values())
    floor = floor_of(lambda: encoders["clip_hf"](pixels))
    encoders |= {f"{name} compiled": torch.compile(encode) for name, encode in encoders.items()}
    ways = {name: lambda encode=encode: encode(pixels) for name, encode in encoders.items()}
    seconds = take_turns(ways | {"floor": floor}, repeats, architecture)
    case = compare(
        f"{architecture}, batch {batch_size}",
        seconds,
        batch_size,
        target=TARGETS.get(architecture, 1.0),
        floor="the model's matrix products, by torch.matmul",
        largest_difference=difference,
    )
    return case | ({"why": BOUND} if case["times_faster"] < case["target"] else {})


def main() -> None:
    """Measures, prints and saves."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--architectures", nargs="+", default=list(TARGETS), help="of the models")
    parser.add_argument("--batch_size", type=int, default=16, help="images at a time; a fourth of it for ViT-L/14")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way")
    parser.add_argument("--output", type=Path, default=RESULTS / "image_features.json", help="JSON file to write")
    args = parser.parse_args()
    cases = []
    with torch.no_grad():
        for name in args.architectures:
            batch_size = max(1, args.batch_size // 4) if name.startswith("ViT-L") else args.batch_size
            cases.append(compare_encoders(name, batch_size, args.repeats))
    save(args.output, "Image features", "images", args, cases)


if __name__ == "__main__":
    main()
