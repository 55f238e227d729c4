"""Images of any kind -> `pixel_values`, as OpenAI's CLIP prepares them (arXiv 2103.00020; openai/CLIP clip/clip.py).

Three classes do the same work; they differ in what resizes: `ClipHfImageProcessor` (Pillow, exact),
`ClipHfImageProcessorTorch` and `ClipHfImageProcessorTorchvision`. All are saved under the name of the first, and
`from_pretrained(..., backend="pil" | "torch" | "torchvision")` chooses between them.
"""

import math
from collections.abc import Set
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional
from transformers import BatchFeature
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import is_torchvision_available

from .image_sizes_clip_hf import centre_box, resized_size, validate_sizes
from .image_sources_clip_hf import decode_source, flatten_images
from .open_clip_checkpoint_clip_hf import is_open_clip, open_clip_image_options, read_open_clip_config
from .options_clip_hf import reject_unknown_options
from .tensor_files_clip_hf import HUB_ARGUMENTS

LARGEST_RESIZE = 2**24
"""Most pixels of a resized image; of a longer strip only the crop is computed, which rounds a few pixels otherwise."""

_SAVED_BESIDE_OPTIONS = {"auto_map", "feature_extractor_type", "image_processor_type", "processor_class"}
_LOADING_ARGUMENTS = {*HUB_ARGUMENTS, "code_revision", "image_processor_filename", "trust_remote_code", "use_fast"}
_ONLY_VALUES = {
    "do_convert_rgb": (None, True),
    "do_pad": (None, False),
    "data_format": (None, "channels_first"),
    "return_tensors": (None, "np", "pt"),
}
_TORCH_MODES = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


class ClipHfImageProcessor(BaseImageProcessor):
    """Resizes the shorter side, crops the centre, scales to 0..1 and normalises: (B, 3, H, W) `pixel_values`.

    For an upright RGB image the result equals OpenAI's transform to the last bit (Pillow's antialiased bicubic,
    torchvision's rounding of sizes and offsets). `decode_image` makes others upright RGB first, and those of more than
    33 megapixels smaller.

    The dtype of `pixel_values` says what they are, to the model and to everyone else:

    * **float32**: rescaled and normalised, which is the default (`do_rescale=True, do_normalize=True`);
    * **uint8**: 0..255 as they were cut out (`do_rescale=False, do_normalize=False`). The model normalises them itself
      on its own device: a fourth of the bytes to keep and to send.

    One without the other would give floats that the model takes for normalised ones, and is refused.

    An image may be a path, an http(s) or `data:` URL, the bytes of a file, an open binary file, a PIL image, or an
    array or tensor (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, uint8 or floats in 0..1; the option
    `input_data_format` settles what is ambiguous. Lists may mix them all, and all sizes; each image is decoded when
    its turn comes, so that a batch of large photos never lies in memory at full size.

    Args:
        size: pixels; an int or `{"shortest_edge": 224}` keeps the aspect ratio, `{"height": ..., "width": ...}` not.
        crop_size: pixels; an int or `{"height": 224, "width": 224}`. For another resolution set both sizes.
        resample: Pillow's filter, bicubic as in CLIP.
        do_resize, do_center_crop, do_rescale, do_normalize: what to do.
        rescale_factor, image_mean, image_std: of the rescaling and the normalisation, one number or one per channel.
        device: where to normalise (and to resize, except with Pillow).
        return_tensors: `"pt"`, `"np"`, or None for a list of arrays (3, H, W), one per image.

    Raises:
        TypeError: an option that does not exist.
        ValueError: options that contradict each other or the above.
    """

    resample = Image.Resampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def __init__(self, **kwargs: Unpack[ImagesKwargs]) -> None:
        _reject_unknown(kwargs)
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)
        self._validate_preprocess_kwargs(**{name: getattr(self, name) for name in self._valid_kwargs_names})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], *args: Any, backend: str | None = None, **kwargs: Any
    ) -> Any:
        """Returns the image processor of a folder or repository: of this class, or of the backend's.

        Raises:
            TypeError: an option that does not exist.
            ValueError: a backend that does not exist.
        """
        if backend is not None and backend not in IMAGE_PROCESSOR_CLASSES:
            raise ValueError(f"backend is {backend!r}, but must be one of {', '.join(IMAGE_PROCESSOR_CLASSES)}")
        if not (kwargs.get("_from_auto") or kwargs.get("return_unused_kwargs")):  # with those of others
            _reject_unknown(kwargs, _LOADING_ARGUMENTS)
        chosen = cls if backend is None else IMAGE_PROCESSOR_CLASSES[backend]
        return super(ClipHfImageProcessor, chosen).from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the options that a checkpoint has saved: ours, transformers' or OpenCLIP's."""
        if is_open_clip(pretrained_model_name_or_path, **kwargs):
            content = read_open_clip_config(pretrained_model_name_or_path, **kwargs)
            return open_clip_image_options(content), {key: kwargs[key] for key in kwargs.keys() - set(HUB_ARGUMENTS)}
        return super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)

    @property
    def backend(self) -> str:
        """What resizes the images."""
        return "pil"

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Leaves images as they are, for processors that ask ahead: each is fetched and decoded in its turn."""
        return image_url_or_urls

    def preprocess(self, images: Any, **kwargs: Any) -> BatchFeature:
        """Returns `pixel_values` of one image or of many, see the class; options of this call override its own.

        Raises:
            ImageDecodingError: an image is broken; the message names it (by path, or as `images[i]`).
            TypeError: an option that does not exist, or an image of no type listed above.
            ValueError: no image at all, an array that is no image, or images of several sizes for one tensor.
        """
        _reject_unknown(kwargs)
        return super().preprocess(images, **kwargs)

    def _validate_preprocess_kwargs(self, **options: Any) -> None:
        super()._validate_preprocess_kwargs(**options)
        for name, allowed in _ONLY_VALUES.items():
            if options[name] not in allowed:
                raise ValueError(f"{name}={options[name]!r} is not supported; leave it at {allowed[-1]!r}")
        if bool(options["do_rescale"]) != bool(options["do_normalize"]):
            raise ValueError(
                f"got do_rescale={options['do_rescale']}, do_normalize={options['do_normalize']}: the model would "
                "take such floats for normalised ones. Set both to True (float32) or both to False (uint8); images "
                "that are floats in 0..1 already need no option"
            )
        mean, std = options["image_mean"], options["image_std"]
        if np.size(mean) not in (1, 3) or np.size(std) not in (1, 3) or np.min(std) <= 0:
            raise ValueError(f"image_mean={mean}, image_std={std} must be one number or three each, image_std above 0")
        validate_sizes(**options)

    def _preprocess_image_like_inputs(self, images: Any, **options: Any) -> BatchFeature:
        sources = list(flatten_images(images))
        if not sources:
            raise ValueError("there is no image to process: got an empty list")
        pixels = [self.process_image(source, f"images[{i}]", **options) for i, source in enumerate(sources)]
        return BatchFeature({"pixel_values": _gather(pixels, options["return_tensors"])})

    def process_image(self, image: Any, name: str, **options: Any) -> Tensor:
        """Returns one image as (3, H, W): float32 if it is normalised, else uint8."""
        rgb = decode_source(image, name, options["input_data_format"])
        resized = resized_size(rgb.size, options["size"]) if options["do_resize"] else rgb.size
        box = centre_box(resized, options["crop_size"]) if options["do_center_crop"] else (0, 0, *resized)
        pixels = self.resize_and_crop(rgb, resized, box, options["resample"], options["device"])
        if not options["do_normalize"]:
            return pixels
        # A division by 255.0, as torchvision's ToTensor does it: to multiply by 1/255 differs in the last bit.
        values = pixels.float().div_(1 / options["rescale_factor"])
        mean, std = (
            torch.tensor(options[key], dtype=values.dtype, device=values.device).view(-1, 1, 1)
            for key in ("image_mean", "image_std")
        )
        return values.sub_(mean).div_(std)

    def resize_and_crop(
        self,
        image: Image.Image,
        resized: tuple[int, int],
        box: tuple[int, int, int, int],
        resample: int,
        device: str | torch.device | None = None,
    ) -> Tensor:
        """Returns uint8 (3, bottom - top, right - left): the box of the image resized to (width, height)."""
        if math.prod(resized) > LARGEST_RESIZE:
            image = _resize_within(image, resized, box, resample)
        else:
            image = image.resize(resized, resample).crop(box)  # beyond the image the crop is black
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(device)

    def to_dict(self) -> dict[str, Any]:
        """Returns what is saved: the options, and for code on the Hub which class serves which backend."""
        saved = super().to_dict()
        saved["image_processor_type"] = ClipHfImageProcessor.__name__
        module = __name__.rpartition(".")[2]
        classes = {backend: f"{module}.{cls.__name__}" for backend, cls in IMAGE_PROCESSOR_CLASSES.items()}
        saved["auto_map"] = saved.get("auto_map", {}) | {"AutoImageProcessor": classes}
        return saved


class ClipHfImageProcessorTorch(ClipHfImageProcessor):
    """`ClipHfImageProcessor` that resizes with torch: faster, and within 1/255 of Pillow before the normalisation.

    Filters other than bilinear and bicubic, tall images, images that hardly shrink, and those that would be above
    `LARGEST_RESIZE` once resized are left to Pillow.
    """

    @property
    def backend(self) -> str:
        """What resizes the images."""
        return "torch"

    def resize_and_crop(
        self,
        image: Image.Image,
        resized: tuple[int, int],
        box: tuple[int, int, int, int],
        resample: int,
        device: str | torch.device | None = None,
    ) -> Tensor:
        """Returns uint8 (3, bottom - top, right - left): the box of the image resized to (width, height)."""
        is_unfit = resample not in _TORCH_MODES or math.prod(resized) > LARGEST_RESIZE
        if is_unfit or self._leaves_to_pillow(image, resized, resample):
            return super().resize_and_crop(image, resized, box, resample, device)
        pixels = torch.from_numpy(np.array(image)).to(device).permute(2, 0, 1)
        if resized != image.size:
            pixels = self._interpolate(pixels[None], resized[::-1], resample)[0]
        left, top, right, bottom = box
        return functional.pad(pixels, (-left, right - resized[0], -top, bottom - resized[1])).contiguous()

    def _leaves_to_pillow(self, image: Image.Image, resized: tuple[int, int], resample: int) -> bool:
        """Whether torch may be more than 1/255 off."""
        # Since version 13, Pillow may resize the height of a tall image before its width.
        is_tall = image.height > 2 * image.width or image.height * resized[0] > 1.02 * image.width * resized[1]
        # torch rounds weights to 16 bits, which shows where a few large ones are added up.
        is_near = image.width < 1.6 * resized[0] or image.height < 1.6 * resized[1]
        return is_tall or (resample == Image.Resampling.BICUBIC and is_near)

    def _interpolate(self, pixels: Tensor, size: tuple[int, int], resample: int) -> Tensor:
        """Resizes uint8 (1, 3, H, W) to (height, width)."""
        mode = _TORCH_MODES[Image.Resampling(resample)]
        if pixels.is_cpu:
            return functional.interpolate(pixels, size, mode=mode, antialias=True)
        return _interpolate_in_floats(pixels, size, mode)


class ClipHfImageProcessorTorchvision(ClipHfImageProcessorTorch, TorchvisionBackend):
    """`ClipHfImageProcessorTorch` that resizes with torchvision; `AutoImageProcessor` takes it where it can.

    Raises:
        ImportError: torchvision is not installed.
    """

    def __init__(self, **kwargs: Unpack[ImagesKwargs]) -> None:
        if not is_torchvision_available():
            raise ImportError(
                f"{type(self).__name__} needs torchvision, which is not installed: install it, or use "
                f'{ClipHfImageProcessorTorch.__name__} (backend="torch") or {ClipHfImageProcessor.__name__} ("pil")'
            )
        super().__init__(**kwargs)

    @property
    def backend(self) -> str:
        """What resizes the images."""
        return "torchvision"

    def _interpolate(self, pixels: Tensor, size: tuple[int, int], resample: int) -> Tensor:
        if not pixels.is_cpu:  # where torchvision resizes floats in one go, up to 23/255 off
            return super()._interpolate(pixels, size, resample)
        return self.resize(pixels, SizeDict(height=size[0], width=size[1]), resample)


IMAGE_PROCESSOR_CLASSES: dict[str, type[ClipHfImageProcessor]] = {
    "pil": ClipHfImageProcessor,
    "torch": ClipHfImageProcessorTorch,
    "torchvision": ClipHfImageProcessorTorchvision,
}
"""The class of each backend, as `AutoImageProcessor.register(image_processor_classes=...)` takes them."""

ClipHfImageProcessor.register_for_auto_class()  # saving copies the code, for all three


def _interpolate_in_floats(pixels: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resizes where torch has no bytes to resize: first the width, then the height, bytes after each, as in Pillow."""
    values = pixels.float()
    for step in ((pixels.shape[-2], size[1]), size):
        values = functional.interpolate(values, step, mode=mode, antialias=True).round_().clamp_(0, 255)
    return values.to(torch.uint8)


def _reject_unknown(options: dict[str, Any], others: Set[str] = frozenset()) -> None:
    known = ImagesKwargs.__annotations__.keys() | _SAVED_BESIDE_OPTIONS | others
    reject_unknown_options(options, known, "image processor")


def _gather(pixels: list[Tensor], return_tensors: str | None) -> Tensor | np.ndarray | list[np.ndarray]:
    if return_tensors is None:
        return [image.cpu().numpy() for image in pixels]
    shapes = {tuple(image.shape) for image in pixels}
    if len(shapes) > 1:
        raise ValueError(
            f"images of the sizes {sorted(shapes)} do not fit into one tensor: set do_center_crop=True (with "
            "do_resize=True), or return_tensors=None for a list"
        )
    batch = torch.stack(pixels)
    return batch if return_tensors == "pt" else batch.cpu().numpy()


def _resize_within(
    image: Image.Image, resized: tuple[int, int], box: tuple[int, int, int, int], resample: int
) -> Image.Image:
    """Computes only the box of the resized image: a photo of 1x20000 would fill 4 GB at 224 x 4,480,000."""
    scale_x, scale_y = image.width / resized[0], image.height / resized[1]
    left, top, right, bottom = box
    x, y, x_end, y_end = max(left, 0), max(top, 0), min(right, resized[0]), min(bottom, resized[1])
    source = (x * scale_x, y * scale_y, min(x_end * scale_x, image.width), min(y_end * scale_y, image.height))
    inside = image.resize((x_end - x, y_end - y), resample, box=source)
    return ImageOps.expand(inside, (x - left, y - top, right - x_end, bottom - y_end))
