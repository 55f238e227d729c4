"""Photographs of any size, made from those of a folder, and the time of decoding them alone."""

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from clip_hf.model.image_decoding_clip_hf import decode_image


def photographs(folder: Path, longest: int, number: int) -> list[bytes]:
    """Returns JPEG files of quality 90 whose longer side has `longest` pixels, enlarged where they have fewer.

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
        size = round(image.width * scale), round(image.height * scale)
        image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return encoded


def decoding(files: Sequence[bytes], shorter_side: float) -> Callable[[], None]:
    """Returns a function that decodes JPEG files at the size that ours decode at in training, and nothing else.

    Args:
        files: to decode.
        shorter_side: pixels that the image must have.
    """
    sizes = [decode_image(file, minimum_size=math.ceil(shorter_side)).size for file in files]

    def decode() -> None:
        for file, size in zip(files, sizes, strict=True):
            image = Image.open(io.BytesIO(file))
            image.draft("RGB", size)
            image.load()

    return decode
