"""Times unit embeddings of images: ours, OpenCLIP's and transformers', of equal weights, as they come and compiled.

On a CPU, what is compiled is frozen too, which packs the weights for the kernels, and compiled for batches of any size
as well, for which torch takes other kernels. The floor is the matrix products of ours, done by torch.matmul in turn
with the others.

python scripts/benchmarks/image_features.py --architectures ViT-B/32 RN50
"""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from measuring.floors import Floor
from measuring.options import add_device, make_parser
from measuring.reports import save
from measuring.rounds import compare, largest_difference, take_turns
from torch import Tensor
from torch._inductor import config as compiler
from torch.nn.functional import normalize

from clip_hf.model.zero_shot_clip_hf import embed_images

AIMS: dict[str, dict[str, float | None]] = {"ViT-B/32": {"": 1.05}, "ViT-L/14": {"": 1.05}, "RN50": {"open_clip": 1.3}}
CAUSES = {
    "ViT": "All sides compute the same products, compiled alike; the rest is little.",
    "RN": "Both sides convolve with the same kernels, compiled alike.",
}
AIMS_ON_GPU: dict[str, float | None] = {"": 1.0}


def find_encoders(architecture: str, args: Namespace) -> tuple[dict[str, Callable[[Tensor], Tensor]], int]:
    """Returns what embeds images, by name, and their size in pixels."""
    from measuring.models import build_models

    models = build_models(architecture, args.device, args.dtype)
    encoders: dict[str, Callable[[Tensor], Tensor]] = {
        "clip_hf": lambda images: embed_images(models.clip_hf, images),
        "open_clip": lambda images: models.open_clip.encode_image(images, normalize=True),
    }
    if (stock := models.transformers) is not None:
        encoders["transformers"] = lambda images: normalize(stock.get_image_features(images).pooler_output, dim=-1)
    return encoders, models.clip_hf.config.vision_config.image_size


def compare_encoders(architecture: str, args: Namespace) -> dict[str, Any]:
    """Returns one case: the encoders of one architecture."""
    encoders, size = find_encoders(architecture, args)
    batch_size = max(1, args.batch_size // 4) if architecture.startswith("ViT-L") else args.batch_size
    pixels = torch.randn(batch_size, 3, size, size, device=args.device, dtype=getattr(torch, args.dtype))
    # The compiler is told: left to itself, it makes code for any size after a batch of another size.
    kinds = {"compiled": False} | ({"compiled for any size": True} if args.device == "cpu" else {})
    encoders |= {
        f"{name} {kind}": torch.compile(encode, dynamic=is_dynamic)
        for kind, is_dynamic in kinds.items()
        for name, encode in encoders.items()
    }
    difference = largest_difference({name: encode(pixels) for name, encode in encoders.items()}, args.dtype)
    floor = Floor.of(lambda: encoders["clip_hf"](pixels), args.device, args.dtype)
    ways = {name: lambda encode=encode: encode(pixels) for name, encode in encoders.items()}
    seconds = take_turns(ways | {"floor": floor}, args.repeats, architecture)
    return compare(
        f"{architecture}, batch {batch_size}",
        seconds | {"floor": [floor.seconds]},
        batch_size,
        aims=AIMS.get(architecture) if args.device == "cpu" else AIMS_ON_GPU,
        cause=CAUSES["ViT" if architecture.startswith("ViT") else "RN"],
        floor=str(floor),
        largest_difference=difference,
    )


def main() -> None:
    """Measures, prints and saves."""
    parser = make_parser(__file__, __doc__, repeats=5)
    parser.add_argument("--architectures", nargs="+", default=list(AIMS), help="of the models")
    parser.add_argument("--batch_size", type=int, default=16, help="images at a time; a fourth of it for ViT-L/14")
    add_device(parser)
    args = parser.parse_args()
    compiler.freezing = args.device == "cpu"
    torch.backends.cudnn.benchmark = True  # on a GPU, the fastest kernels
    with torch.no_grad():
        save("Image features", "images", args, [compare_encoders(name, args) for name in args.architectures])


if __name__ == "__main__":
    main()
