"""One decoder for every image: file, bytes, file object or PIL image -> upright RGB.

The processor and the training data both read images here, so that a photo means the same pixels everywhere:

1. the header is read and the pixel count checked, before anything is decoded;
2. the pixels are decoded, at a reduced size where that is enough; the first frame of an animation, page or stack;
3. every mode becomes 8-bit RGB: palettes and CMYK converted, 16 and 32 bits scaled, transparency laid on white;
4. the EXIF orientation is applied.

No file makes this module start a program, open a window or write a file. Colour profiles are not applied: CLIP was
trained on pixel values as stored.
"""

import math
import os
import threading
import warnings
from io import BytesIO
from types import TracebackType
from typing import IO, cast

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image

MAX_PIXELS = 89_478_485
"""Most pixels that are decoded unasked: the count above which Pillow warns of a decompression bomb."""

FULL_SIZE_PIXELS = 2**25
"""Most pixels of a decoded image (134 MB in memory): larger ones are shrunk by a whole factor on the way."""

_SOURCE_TYPES = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
_STRIP_PIXELS = 2**20
_REDUCING_GAP = 2

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageDecodingError(ValueError):
    """An image could not be decoded; the message names the image and the reason."""


class _QuietPillow:
    """Hides Pillow's warnings about odd metadata while at least one thread decodes.

    `warnings.catch_warnings` alone is not enough: the filters belong to the process, and two threads that leave in
    the order in which they came would restore each other's filters and silence the program for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_users = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._num_users += 1
            if self._num_users == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with self._lock:
            self._num_users -= 1
            if self._num_users == 0:
                self._filters.__exit__(kind, error, traceback)


_quiet_pillow = _QuietPillow()


def decode_image(
    source: ImageSource, *, name: str | None = None, minimum_size: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Returns an image as upright 8-bit RGB, whole and finite, or raises; never a half of it.

    * 16-bit greys are scaled by 255/65535, as Pillow itself scales 16-bit colour. 32-bit integers within 0..65535 are
      read as 16-bit. Floats are read on the smallest of the scales 0..1, 0..255 and 0..65535 that holds them all.
      Numbers outside these are stretched: the lowest becomes black, the highest white.
    * Transparent pixels show white behind them.
    * Images above `FULL_SIZE_PIXELS` are shrunk by a whole factor, a strip at a time. At `max_pixels` the decoding
      takes less than 500 MB for most formats (Pillow's decoders of WebP and JPEG 2000 take up to 18 bytes a pixel).
    * Truncated files are errors (unless the program has switched on `PIL.ImageFile.LOAD_TRUNCATED_IMAGES`).

    Args:
        source: a path, the bytes of a file, a file open for binary reading, or a PIL image. A PIL image is never
            changed; it is returned itself if it is upright RGB already. An animated one counts as its current frame.
        name: what errors call the image; the path, or what the source says of itself, by default.
        minimum_size: pixels, of the shorter side. Allows a smaller image than the file holds, as long as its shorter
            side keeps twice this size: JPEG files are then decoded at 1/2, 1/4 or 1/8 (a fourth of the time of a
            12-megapixel photo), others averaged down. After an antialiased resize to `minimum_size` the pixels
            differ from those of the whole image by about 1/255 on average, by more at sharp edges.
        max_pixels: the most pixels that are decoded (width times height, after the reduction of a JPEG file). Does
            not bind PIL images, which were checked where they were opened. Above twice `PIL.Image.MAX_IMAGE_PIXELS`
            Pillow itself refuses to open a file: raise that as well.

    Raises:
        ImageDecodingError: the file is missing, broken, truncated, too large or not an image.
        TypeError: the source is of no type that can hold an image.
        ValueError: `minimum_size` is not positive.
    """
    if minimum_size is not None and minimum_size < 1:
        raise ValueError(f"minimum_size is {minimum_size}; it must be at least 1, or None for the whole image")
    if not (isinstance(source, _SOURCE_TYPES) or hasattr(source, "read")):
        raise TypeError(f"{source!r:.60} is no image: pass a path, bytes, an open binary file or a PIL image")
    try:
        with _quiet_pillow:
            if isinstance(source, Image.Image):
                source.load()
                return _to_upright_rgb(source, minimum_size)
            return _decode_file(source, minimum_size, max_pixels)
    except Exception as error:  # a damaged file makes Pillow raise a dozen types, SyntaxError and KeyError among them
        raise ImageDecodingError(f"{name or _name_of(source)}: {_reason(error)}") from error


def _decode_file(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes],
    minimum_size: int | None,
    max_pixels: int,
) -> Image.Image:
    readable = BytesIO(source) if isinstance(source, bytes | bytearray | memoryview) else source
    with Image.open(readable) as image:
        if image.format == "EPS":
            raise ValueError("EPS is a program, which Pillow would hand to Ghostscript to run; convert it first")
        factor = _shrink_factor(image.size, minimum_size)
        if factor > 1:
            image.draft(None, (image.width // factor, image.height // factor))  # acts on JPEG files only
        if image.width * image.height > max_pixels:
            raise ValueError(
                f"{image.width}x{image.height} is more than max_pixels={max_pixels:,}; "
                "if you trust the file, call decode_image with a higher max_pixels"
            )
        image.load()
        return _to_upright_rgb(image, minimum_size)


def _shrink_factor(size: tuple[int, int], minimum_size: int | None) -> int:
    """The whole number by which both sides of an image may be divided."""
    factor = math.ceil(math.sqrt(math.prod(size) / FULL_SIZE_PIXELS))
    if minimum_size is not None:
        factor = max(factor, min(size) // (_REDUCING_GAP * minimum_size))
    return max(factor, 1)


def _to_upright_rgb(image: Image.Image, minimum_size: int | None) -> Image.Image:
    transpose = _transpose_of(image)
    factor = _shrink_factor(image.size, minimum_size)
    if image.mode != "RGB" or image.has_transparency_data or factor > 1:
        image = _to_rgb(image, factor)
    if transpose is not None:
        image = image.transpose(transpose)
        image.info.clear()  # the copy still carries the tag: a second decoding would turn the image again
    return image


def _transpose_of(image: Image.Image) -> Image.Transpose | None:
    """How to turn an image upright by its EXIF or XMP orientation; None where there is nothing to turn."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged metadata, for which Pillow raises as many types as for damaged pixels: these are whole
        return None


def _to_rgb(image: Image.Image, factor: int) -> Image.Image:
    """Converts strip by strip, so that no more than one strip ever exists in a third mode or at both sizes."""
    black_white = _black_and_white(image)
    width, height = image.size
    rgb = Image.new("RGB", (math.ceil(width / factor), math.ceil(height / factor)))
    rows = max(_STRIP_PIXELS // (width * factor), 1) * factor
    for top in range(0, height, rows):
        strip = _strip_to_rgb(image.crop((0, top, width, min(top + rows, height))), black_white)
        rgb.paste(strip.reduce(factor), (0, top // factor))
    return rgb


def _strip_to_rgb(strip: Image.Image, black_white: tuple[float, float] | None) -> Image.Image:
    if black_white is not None:
        black, white = black_white
        values = np.asarray(strip.convert("F" if strip.mode == "F" else "I"), dtype=np.float32)
        if not np.isfinite(values).all():
            raise ValueError("it holds NaN or infinite values")
        bytes_ = np.rint((values - black) * (255 / (white - black))).astype(np.uint8)
        return Image.fromarray(bytes_).convert("RGB")
    if strip.has_transparency_data:
        canvas = Image.new("RGBA", strip.size, "white")
        canvas.alpha_composite(strip.convert("RGBA"))
        strip = canvas
    return strip.convert("RGB")


def _black_and_white(image: Image.Image) -> tuple[float, float] | None:
    """The numbers that mean black and white in an image of more than 8 bits; None for all other images."""
    if image.mode.startswith("I;16"):
        return 0, 65535
    if image.mode not in ("I", "F"):
        return None
    lowest, highest = cast("tuple[float, float]", image.getextrema())
    for white in (65535,) if image.mode == "I" else (1, 255, 65535):
        if 0 <= lowest and highest <= white:
            return 0, white
    return lowest, max(highest, lowest + 1)


def _name_of(source: ImageSource) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"image of {len(source):,} bytes"
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"PIL image of {source.width}x{source.height}"
    return str(getattr(source, "name", "image in a file object"))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is empty or of no image format that Pillow knows"
    if isinstance(error, Image.DecompressionBombError):
        return f"{error} If you trust the file, raise PIL.Image.MAX_IMAGE_PIXELS and pass decode_image a max_pixels"
    return f"{type(error).__name__}: {error}"
