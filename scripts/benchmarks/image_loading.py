"""Times JPEG files to training pixels on one core: ours, OpenCLIP's training transform, transformers' processor.

Photographs are brought to 640 and to 4,000 pixels and compressed at quality 90, so that anyone's photographs will do.
The floor is the codec alone: Pillow decodes the file at full size. Ours decodes large files at reduced size (JPEG's
own scaling), in training only.

    python scripts/benchmarks/image_loading.py --images folder_of_photographs
"""

import io
import os
import random
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring.reports import RESULTS, save
from measuring.rounds import compare, take_turns
from PIL import Image

from clip_hf import ClipHfImageProcessor
from clip_hf.data.augmentation import Augmentation, training_pixels

CROP_SCALE = (0.9, 1.0)  # what OpenCLIP's transform for training cuts out by default


def photographs(folder: Path, longest: int, number: int) -> list[bytes]:
    """Returns JPEG files whose longer side has `longest` pixels.

    Raises:
        SystemExit: the folder has no photographs.
    """
    files = sorted(folder.glob("*.jpg"))[:number]
    if not files:
        raise SystemExit(f"there are no *.jpg files in {folder}: name a folder of photographs with --images")
    encoded = []
    for file in files:
        image, buffer = Image.open(file).convert("RGB"), io.BytesIO()
        scale = longest / max(image.size)
        image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC).save(
            buffer, "JPEG", quality=90
        )
        encoded.append(buffer.getvalue())
    return encoded


def loaders() -> dict[str, Callable[[bytes], Any]]:
    """Returns what makes training pixels of a file, by name."""
    from open_clip import image_transform
    from transformers import CLIPImageProcessor

    processor, rng = ClipHfImageProcessor(), random.Random(0)
    box, square = Augmentation(crop_scale=CROP_SCALE), Augmentation()
    transform, theirs = image_transform(224, is_train=True), CLIPImageProcessor()
    return {
        "clip_hf": lambda file: training_pixels(file, "photo", processor, box, rng),
        "clip_hf, the paper's square": lambda file: training_pixels(file, "photo", processor, square, rng),
        "open_clip": lambda file: transform(Image.open(io.BytesIO(file))),
        "transformers": lambda file: theirs(Image.open(io.BytesIO(file)).convert("RGB"), return_tensors="pt"),
        "floor": lambda file: Image.open(io.BytesIO(file)).load(),
    }


def main() -> None:
    """Measures, prints and saves."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    default = Path(os.environ.get("CLIP_HF_TEST_DATA", "."), "flickr8k", "validation")
    parser.add_argument("--images", type=Path, default=default, help="folder of photographs, *.jpg")
    parser.add_argument("--num_images", type=int, default=24, help="photographs; a fourth of them at 4,000 pixels")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way")
    parser.add_argument("--output", type=Path, default=RESULTS / "image_loading.json", help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = []
    for longest, number, target in ((640, args.num_images, 1.5), (4000, max(1, args.num_images // 4), 3.0)):
        files = photographs(args.images, longest, number)
        ways = {name: lambda load=load, f=files: [load(file) for file in f] for name, load in loaders().items()}
        title = f"JPEG files of {longest:,} pixels, {sum(map(len, files)) / len(files) / 1e3:,.0f} kB"
        seconds = take_turns(ways, args.repeats, title)
        cases.append(compare(title, seconds, len(files), target=target, floor="Pillow decodes the file at full size"))
    save(args.output, "Images to training pixels, one core", "images", args, cases)


if __name__ == "__main__":
    main()
