"""Exports a checkpoint, or one of its towers, to ONNX, checks it with ONNX Runtime, and shows three lines that use it.

python scripts/export_onnx.py --model outputs/demo/model --part image --output_dir outputs/onnx
"""

import json
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModel, HfArgumentParser
from transformers.exporters import OnnxConfig, OnnxExporter

from clip_hf import ClipHfImageProcessor, ClipHfProcessor, ClipHfTokenizer

TEXTS = '["a dog", "a photo of two cats"], padding=True'
PARTS: dict[str, tuple[Any, list[str], str]] = {  # what prepares its inputs, its outputs, an example
    "joint": (ClipHfProcessor, ["image_embeds", "text_embeds"], f'images="photo.jpg", text={TEXTS}'),
    "image": (ClipHfImageProcessor, ["image_embeds"], '"photo.jpg"'),
    "text": (ClipHfTokenizer, ["text_embeds"], TEXTS),
}
USE = """
from clip_hf import {processor}
from onnxruntime import InferenceSession

session = InferenceSession("{folder}/model.onnx")
inputs = {processor}.from_pretrained("{folder}")({example}, return_tensors="np")
[{targets}] = session.run({outputs}, {{one.name: inputs[one.name] for one in session.get_inputs()}})"""


@dataclass
class ExportArguments:
    """What to export, where to, and how exact it must be."""

    model: str = field(metadata={"help": "checkpoint folder or Hub repository"})
    output_dir: Path = field(metadata={"help": "folder for model.onnx and the processor"})
    part: Literal["joint", "image", "text"] = field(
        default="joint", metadata={"help": "the whole model, or the image or text tower alone"}
    )
    max_difference: float = field(
        default=1e-4, metadata={"help": "largest allowed difference of unit embeddings to PyTorch's"}
    )


def example_inputs(config: Any, part: str, batch_size: int, length: int) -> dict[str, Tensor]:
    """Returns random inputs: `input_ids` (batch_size, length), normalised `pixel_values`, or both."""
    text, vision = config.text_config, config.vision_config
    input_ids = torch.randint(0, min(text.bos_token_id, text.eos_token_id), (batch_size, length))
    ends = torch.randint(1, length, (batch_size, 1))
    input_ids = input_ids.masked_fill(torch.arange(length) >= ends, text.eos_token_id)
    pixel_values = torch.randn(batch_size, vision.num_channels, vision.image_size, vision.image_size)
    inputs = {"input_ids": input_ids, "pixel_values": pixel_values}
    return {"joint": inputs, "image": {"pixel_values": pixel_values}, "text": {"input_ids": input_ids}}[part]


def largest_difference(output: Any, expected: Any, names: list[str]) -> float:
    """Returns the largest difference of the embeddings, compared at unit length; NaN if there is one."""
    pairs = [(torch.as_tensor(output[name]), expected[name]) for name in names]
    normalize = torch.nn.functional.normalize
    return torch.stack([(normalize(found) - normalize(wanted)).abs().max() for found, wanted in pairs]).max().item()


def main(arguments: ExportArguments) -> None:
    """Exports, compares on another batch size and shorter texts than the example's, saves only what agrees."""
    model = AutoModel.from_pretrained(arguments.model, dtype=torch.float32).eval()
    part = {"joint": model, "image": model.vision_model, "text": model.text_model}[arguments.part]
    if arguments.part != "joint" and getattr(part, "projection", None) is None:
        sys.exit(
            f"export_onnx.py: the {arguments.part} tower of a {type(model).__name__} gives no embeddings by itself: "
            "save the checkpoint with ClipHfModel first, or export --part joint"
        )
    processor, outputs, example = PARTS[arguments.part]
    length = model.config.text_config.max_position_embeddings
    inputs = example_inputs(model.config, arguments.part, 2, length)
    exported = OnnxExporter().export(part, inputs, config=OnnxConfig(dynamic=True))
    inputs = example_inputs(model.config, arguments.part, 3, length // 2)
    with torch.no_grad():
        difference = largest_difference(exported(**inputs), part(**inputs), outputs)
    if not difference <= arguments.max_difference:
        sys.exit(
            f"not saved: embeddings differ by {difference:.1e}, more than --max_difference {arguments.max_difference}"
        )
    folder = arguments.output_dir
    exported.save_pretrained(folder)
    try:
        processor.from_pretrained(arguments.model).save_pretrained(folder)
    except (OSError, ValueError) as error:
        print(f"{arguments.model} has no {processor.__name__}, so save one in {folder}: {error}")
    print(f"{folder / 'model.onnx'}: embeddings differ from PyTorch's by {difference:.1e} at most. To use it:")
    names = {"processor": processor.__name__, "targets": ", ".join(outputs), "outputs": json.dumps(outputs)}
    print(USE.format(folder=folder.as_posix(), example=example, **names))


if __name__ == "__main__":
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    main(*HfArgumentParser(ExportArguments).parse_args_into_dataclasses())
