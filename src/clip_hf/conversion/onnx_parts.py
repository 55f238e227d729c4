"""What can be exported to ONNX: a model or one of its towers, with inputs to trace it and what prepares real ones."""

from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from clip_hf.model.configuration_clip_hf import ClipHfConfig
from clip_hf.model.image_processing_clip_hf import ClipHfImageProcessor
from clip_hf.model.normalization_clip_hf import with_normalization
from clip_hf.model.processing_clip_hf import ClipHfProcessor
from clip_hf.model.tokenization_clip_hf import ClipHfTokenizer

Part = Literal["joint", "image", "text"]
PROCESSORS: dict[Part, Any] = {"joint": ClipHfProcessor, "image": ClipHfImageProcessor, "text": ClipHfTokenizer}
PART_OF_MODEL_TYPE: dict[str, Part] = {"clip_hf_text": "text", "clip_hf_vit": "image", "clip_hf_resnet": "image"}


def open_part(source: str, name: Part) -> PreTrainedModel:
    """Returns the model of a checkpoint, or the tower that is to be exported.

    Args:
        source: folder or repository, of a model or of a tower alone.
        name: of the part.

    Raises:
        ValueError: the checkpoint does not open, has no such part, or one without embeddings.
    """
    try:
        model = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    except (OSError, ValueError) as error:
        raise ValueError(f"model is {source}, which does not open: {error}") from error
    parts: dict[Part, Any]
    if (own := PART_OF_MODEL_TYPE.get(model.config.model_type)) is not None:
        parts, advice = {own: model}, f"export its --part {own}"
    else:
        image, text = (getattr(model, f"{tower}_model", None) for tower in ("vision", "text"))
        parts = {"joint": model, "image": image, "text": text}
        advice = "export a CLIP"
    if None in parts.values() or name not in parts:
        raise ValueError(f"{source} is a {type(model).__name__}, which has no --part {name}: {advice}")
    if name != "joint" and getattr(parts[name], "projection", None) is None:
        raise ValueError(
            f"the {name} tower of a {type(model).__name__} gives no embeddings by itself: save the checkpoint with "
            "ClipHfModel first, or export --part joint"
        )
    return parts[name]


def example_inputs(config: PreTrainedConfig, name: Part, batch_size: int, cut: int = 1) -> dict[str, Tensor]:
    """Returns random inputs: `input_ids` (B, longest text // cut), normalised `pixel_values` (B, 3, H, W), or both.

    Args:
        config: of the part.
        name: of the part.
        batch_size: B.
        cut: what the length of the longest text is divided by.
    """
    inputs = {}
    if name != "image":
        text = getattr(config, "text_config", config)
        length = text.max_position_embeddings // cut
        input_ids = torch.randint(0, min(text.bos_token_id, text.eos_token_id), (batch_size, length))
        ends = torch.randint(1, length, (batch_size, 1))
        inputs["input_ids"] = input_ids.masked_fill(torch.arange(length) >= ends, text.eos_token_id)
    if name != "text":
        vision = getattr(config, "vision_config", config)
        inputs["pixel_values"] = torch.randn(batch_size, vision.num_channels, vision.image_size, vision.image_size)
    return inputs


def open_processor(source: str, name: Part, part: PreTrainedModel) -> Any:
    """Returns what prepares a part's inputs, with pixels normalised: an exported model takes one type of them.

    Args:
        source: folder or repository.
        name: of the part.
        part: as `open_part` returns it.

    Raises:
        ValueError: the checkpoint has a broken one, or is not CLIP's.
        OSError: it has none.
    """
    processor = PROCESSORS[name].from_pretrained(source)
    if name == "image":
        return with_normalization(processor, part.config)
    if name == "joint":
        vision_config = ClipHfConfig.from_pretrained(source).vision_config  # transformers' has no mean and deviation
        processor.image_processor = with_normalization(processor.image_processor, vision_config)
    return processor
