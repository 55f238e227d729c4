"""Times JPEG files to batches of normalised pixels on one core: ours, OpenCLIP's transform, transformers' processor.

Photographs are brought to 640 and to 4,000 pixels and compressed at quality 90, so that any will do. They are decoded,
cropped, stacked and normalised; from a tar file, with their captions, too. The floor is the codec alone at the size
that ours decode at: large files at a reduced one (JPEG's own scaling), in training only. For inference, our image
processor that resizes with torch is timed against our own with Pillow.

    python scripts/benchmarks/image_loading.py --images folder_of_photographs
"""

import io
import operator
import os
import random
import statistics
import tarfile
import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from measuring.noise import write_shard
from measuring.options import make_parser
from measuring.photographs import decoding, photographs
from measuring.reports import save
from measuring.rounds import compare, take_turns
from PIL import Image
from torch import Tensor

from clip_hf import ClipHfConfig, ClipHfImageProcessor, ClipHfProcessor
from clip_hf.data.augmentation import Augmentation, training_pixels
from clip_hf.data.sources import open_source
from clip_hf.data.training_pairs import TrainingPairs
from clip_hf.model.image_processing_clip_hf import ClipHfImageProcessorTorch
from clip_hf.model.modeling_clip_hf_base import normalize_pixels

LEAST_SHARE = 0.9  # of its area that OpenCLIP's transform for training keeps of an image, by default
BOX, SQUARE = Augmentation(crop_scale=(LEAST_SHARE, 1.0)), Augmentation()
SIZE = 224
FLOOR = "Pillow alone decodes the files, at the size that ours decode at"


def normalized(pixels: Tensor) -> Tensor:
    """Returns raw pixels as our model normalises them."""
    return normalize_pixels(pixels, ClipHfConfig().vision_config, torch.float32)


def ours(augmentation: Augmentation) -> Callable[[Sequence[bytes]], Tensor]:
    """Returns what makes a batch of files in our way."""
    processor, rng = ClipHfImageProcessor(), random.Random(0)
    return lambda files: normalized(
        torch.stack([training_pixels(file, "photo", processor, augmentation, rng) for file in files])
    )


def theirs() -> dict[str, Callable[[Sequence[Any]], Tensor]]:
    """Returns what makes a batch of files, or of what can be read like files, in the peers' ways."""
    from open_clip import image_transform
    from transformers import CLIPImageProcessor

    transform, processor = image_transform(SIZE, is_train=True), CLIPImageProcessor()

    def transformers(files: Sequence[bytes]) -> Tensor:
        images = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        return processor(images, return_tensors="pt")["pixel_values"]

    def open_clip(files: Sequence[bytes]) -> Tensor:
        return torch.stack([transform(Image.open(io.BytesIO(file))) for file in files])

    return {"open_clip": open_clip, "transformers": transformers}


def compare_files(longest: int, number: int, box_aim: float, args: Namespace) -> list[dict[str, Any]]:
    """Returns two cases: random boxes against OpenCLIP's, squares against those of transformers' processor."""
    files, peers = photographs(args.images, longest, number), theirs()
    title = f"JPEG files of {longest:,} pixels, {sum(map(len, files)) / len(files) / 1e3:,.0f} kB"
    cases = []
    for kind, augmentation, peer, aim, side in (
        ("random boxes", BOX, "open_clip", box_aim, SIZE / LEAST_SHARE**0.5),
        ("squares", SQUARE, "transformers", None, SIZE),
    ):
        loaders = {"clip_hf": ours(augmentation), peer: peers[peer]}
        ways = {name: lambda load=load: load(files) for name, load in loaders.items()}
        seconds = take_turns(ways | {"floor": decoding(files, side)}, args.repeats, title)
        cases.append(compare(f"{title}, {kind}", seconds, len(files), {peer: aim}, floor=FLOOR))
    return cases


def compare_backends(number: int, args: Namespace) -> dict[str, Any]:
    """Returns one case: what resizes with torch against what resizes with Pillow, both our image processor."""
    files = photographs(args.images, 640, number)
    processors = {"clip_hf": ClipHfImageProcessorTorch(), "Pillow": ClipHfImageProcessor()}
    ways: dict[str, Callable[[], Any]] = {
        name: lambda processor=processor: processor(files, return_tensors="pt")
        for name, processor in processors.items()
    }
    title = "JPEG files of 640 pixels, inference, torch backend"
    seconds = take_turns(ways | {"floor": decoding(files, 640)}, args.repeats, title)
    times = statistics.median(map(operator.truediv, seconds.pop("Pillow"), seconds["clip_hf"]))
    note = f"; {times:.2f} times our Pillow backend"
    return compare(title, seconds, len(files), floor="Pillow alone decodes the files", note=note)


def compare_shards(number: int, args: Namespace) -> dict[str, Any]:
    """Returns one case: batches of pairs from a tar file."""
    from measuring.models import build_tokenizers

    files, tokenizers, make_pixels = photographs(args.images, 640, number), build_tokenizers(), theirs()["open_clip"]
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder, "0000.tar")
        write_shard(shard, files, "two dogs run through high grass")
        processor = ClipHfProcessor(ClipHfImageProcessor(), tokenizers.clip_hf)
        pairs = TrainingPairs([open_source(shard, streaming=True)], processor, augmentation=BOX)
        loader = pairs.loader(len(files))

        def open_clip() -> tuple[Tensor, Tensor]:
            with tarfile.open(shard) as archive:
                content = {member.name: archive.extractfile(member).read() for member in archive}
            pixels = make_pixels([part for name, part in content.items() if name.endswith("jpg")])
            return pixels, tokenizers.open_clip(
                [part.decode() for name, part in content.items() if name[-3:] == "txt"]
            )

        ways = {
            "clip_hf": lambda: [normalized(batch["pixel_values"]) for batch in loader],
            "open_clip's transform and tokenizer, tarfile": open_clip,
            "floor": decoding(files, SIZE / LEAST_SHARE**0.5),
        }
        title = "pairs of a tar file, JPEG files of 640 pixels, random boxes"
        return compare(title, take_turns(ways, args.repeats, title), len(files), {"": 1.5}, floor=FLOOR)


def main() -> None:
    """Measures, prints and saves."""
    parser = make_parser(__file__, __doc__, repeats=7)
    default = Path(os.environ.get("CLIP_HF_TEST_DATA", "."), "flickr8k", "validation")
    parser.add_argument("--images", type=Path, default=default, help="folder of photographs, *.jpg")
    parser.add_argument("--num_images", type=int, default=64, help="photographs; an eighth of them at 4,000 pixels")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = [
        *compare_files(640, args.num_images, 1.5, args),
        *compare_files(4000, max(1, args.num_images // 8), 3.0, args),
        compare_backends(args.num_images, args),
        compare_shards(args.num_images, args),
    ]
    origin = f"of {args.images.parent.name}/{args.images.name}, enlarged where they are smaller"
    save("Images to training batch, one core", "images", args, cases, photographs=origin)


if __name__ == "__main__":
    main()
