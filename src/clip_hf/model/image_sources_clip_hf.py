"""What the image processor accepts: lists, paths, URLs, bytes, files, PIL images, arrays -> upright RGB images."""

import base64
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from huggingface_hub.utils import httpx
from PIL import Image
from torch import Tensor
from transformers.image_utils import infer_channel_dimension_format

from .image_decoding_clip_hf import ImageDecodingError, decode_image

_CHANNELS = (1, 3, 4)
_DATA_FORMATS = ("channels_first", "channels_last", None)
_SECONDS = 60  # that a server may take for an image


def flatten_images(images: Any) -> Iterator[Any]:
    """Yields the single images of nested lists, tuples and batched arrays (B, ...)."""
    if isinstance(images, list | tuple) or (isinstance(images, np.ndarray | Tensor) and images.ndim > 3):
        for image in images:
            yield from flatten_images(image)
    else:
        yield images


def decode_source(
    image: Any, name: str, input_data_format: str | None = None, timeout: float | None = None
) -> Image.Image:
    """Returns one image as upright RGB, whatever it comes as.

    Args:
        image: a path, an http(s) or `data:` URL, or anything else that `decode_image` reads; or an array or tensor
            (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, uint8 or floats in 0..1.
        name: what errors call it, unless it is a path or a URL, which name themselves.
        input_data_format: `"channels_first"` or `"channels_last"` for arrays; told from the shape by default.
        timeout: seconds that the server of a URL may be silent.

    Raises:
        ImageDecodingError: the image is broken, missing or out of reach.
        TypeError: it is of no type listed above.
        ValueError: it is an array that is no image, or `input_data_format` is neither of the two or not the array's.
    """
    if input_data_format not in _DATA_FORMATS:
        raise ValueError(f"input_data_format is {input_data_format!r}, but must be one of {_DATA_FORMATS}")
    if isinstance(image, np.ndarray | Tensor):
        return decode_image(_array_to_image(image, name, input_data_format), name=name)
    if isinstance(image, str) and image.startswith(("http://", "https://", "data:image/")):
        return decode_image(_fetch(image, timeout or _SECONDS), name=f"{image:.80}")
    return decode_image(image, name=None if isinstance(image, str | os.PathLike) else name)


def decode_base64(text: str) -> bytes:
    """Returns the bytes of a base64 text, which may be broken into lines.

    Raises:
        ValueError: it is none.
    """
    return base64.b64decode("".join(text.split()), validate=True)


def _fetch(url: str, timeout: float) -> bytes:
    try:
        if url.startswith("data:"):
            return decode_base64(url.partition(",")[2])
        return httpx.get(url, follow_redirects=True, timeout=timeout).raise_for_status().content
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ImageDecodingError(f"{url:.80}: {type(error).__name__}: {error}") from error


def _array_to_image(array: np.ndarray | Tensor, name: str, input_data_format: str | None) -> Image.Image:
    if isinstance(array, Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    if np.issubdtype(array.dtype, np.floating) and ((array >= 0) & (array <= 1)).all():
        array = np.rint(array * 255).astype(np.uint8)
    has_channels = array.ndim == 3 and bool({array.shape[0], array.shape[-1]} & set(_CHANNELS))
    if array.dtype != np.uint8 or array.size == 0 or not (has_channels or array.ndim == 2):
        raise ValueError(
            f"{name} is an array of {array.dtype} and shape {array.shape}; pass uint8, or floats between 0 and 1, "
            "of shape (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels"
        )
    if has_channels:
        layout = input_data_format or infer_channel_dimension_format(array, num_channels=_CHANNELS)
        shape, array = array.shape, np.moveaxis(array, 0, -1) if layout == "channels_first" else array
        if array.shape[-1] not in _CHANNELS:
            other = "channels_last" if layout == "channels_first" else "channels_first"
            raise ValueError(
                f"input_data_format is '{input_data_format}', in which {name} of shape {shape} has {array.shape[-1]} "
                f"channels: pass '{other}', or None to have it told from the shape"
            )
        array = array[..., 0] if array.shape[-1] == 1 else array
    return Image.fromarray(np.ascontiguousarray(array))
