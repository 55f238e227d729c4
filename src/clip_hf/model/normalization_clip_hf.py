"""Mean and deviation of pixels, which an image processor uses and, for raw pixels, the model itself.

Our configurations hold them. Those of transformers do not: there they are the image processor's alone.
"""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from .tensor_files_clip_hf import find_file

logger = logging.get_logger(__name__)

TOLERANCE = 1e-6


def normalization_of(options: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """Returns `image_mean` and `image_std`, three numbers each, of pixels between 0 and 1.

    Args:
        options: of an image processor; what they do not say is left out, which of ours that leaves pixels raw, for
            the model to normalise, is both.
    """
    if not options.get("do_normalize", True):
        if str(options.get("image_processor_type")).startswith("ClipHf"):
            return {}
        options = {**options, "image_mean": 0.0, "image_std": 1.0}
    white = 255 * options.get("rescale_factor", 1 / 255) if options.get("do_rescale", True) else 255
    return {
        name: tuple((np.broadcast_to(options[name], 3) / white).tolist())
        for name in ("image_mean", "image_std")
        if options.get(name) is not None
    }


def read_normalization(source: str | PathLike[str], **hub_arguments: Any) -> dict[str, tuple[float, ...]]:
    """Returns the same of the image processor that was saved beside a configuration, if any was.

    Args:
        source: a folder, the name of a repository, or a configuration's file.
        hub_arguments: as in `find_file`.

    Raises:
        ValueError: a file is there, but no image processor's.
    """
    folder = Path(source).parent if Path(source).is_file() else source
    for name in ("processor_config.json", "preprocessor_config.json"):  # of which transformers takes the first
        path = find_file(folder, name, **hub_arguments)
        try:
            content = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
            options = content if name.startswith("pre") else content.get("image_processor")
            if options:
                return normalization_of(options)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} has no image processor ({type(error).__name__}: {error})") from error
    if not Path(source).exists():
        logger.warning(f"No image processor of {source} is at hand: its images are taken to be normalised as OpenAI's")
    return {}


def with_normalization(image_processor: Any, vision_config: Any) -> Any:
    """Returns an image processor of ours that normalises, for models that do not: with the numbers of one that does.

    Args:
        image_processor: ours; returned as it is if it normalises.
        vision_config: of the model that normalises its raw pixels.
    """
    if image_processor.do_normalize:
        return image_processor
    numbers = {name: list(getattr(vision_config, name)) for name in ("image_mean", "image_std")}
    steps = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    return type(image_processor).from_dict(image_processor.to_dict() | steps | numbers)


def require_same_normalization(vision_config: Any, image_processor: Any) -> None:
    """Raises ValueError unless a model does to raw pixels what an image processor does to those that it normalises.

    Args:
        vision_config: of a model of ours.
        image_processor: ours or transformers'.
    """
    for name, found in normalization_of(image_processor.to_dict()).items():
        expected = getattr(vision_config, name)
        if not np.allclose(found, expected, rtol=0, atol=TOLERANCE):
            raise ValueError(
                f"{name} is {found} in the image processor, but {expected} in the model's vision_config: raw pixels "
                "would be normalised in another way than the processor's. Give both the numbers that the model was "
                "trained with, in preprocessor_config.json and config.json"
            )
