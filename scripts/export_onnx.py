"""Exports a checkpoint, or one of its towers, to ONNX, checks it with ONNX Runtime, and shows three lines that use it.

python scripts/export_onnx.py --model outputs/demo/model --part image --output_dir outputs/onnx
"""

import json
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser
from transformers.exporters import OnnxConfig, OnnxExporter

from clip_hf.conversion.onnx_parts import PROCESSORS, Part, example_inputs, open_part, open_processor
from clip_hf.training.mistakes import told_in_a_line

TEXTS = '["a dog", "a photo of two cats"], padding=True'
PARTS: dict[Part, tuple[list[str], str]] = {  # its outputs, an example
    "joint": (["image_embeds", "text_embeds"], f'images="photo.jpg", text={TEXTS}'),
    "image": (["image_embeds"], '"photo.jpg"'),
    "text": (["text_embeds"], TEXTS),
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
    part: Part = field(default="joint", metadata={"help": "the whole model, or the image or text tower alone"})
    max_difference: float = field(
        default=1e-4, metadata={"help": "largest allowed difference of unit embeddings to PyTorch's"}
    )


def largest_difference(output: Any, expected: Any, names: list[str]) -> float:
    """Returns the largest difference of the embeddings, compared at unit length; NaN if there is one."""
    pairs = [(torch.as_tensor(output[name]), expected[name]) for name in names]
    normalize = torch.nn.functional.normalize
    return torch.stack([(normalize(found) - normalize(wanted)).abs().max() for found, wanted in pairs]).max().item()


def main(arguments: ExportArguments) -> None:
    """Exports, compares on another batch size and shorter texts than the example's, saves only what agrees."""
    with told_in_a_line(OSError):
        part = open_part(arguments.model, arguments.part)
        arguments.output_dir.mkdir(parents=True, exist_ok=True)  # not found out after the export
    processor, (outputs, example) = PROCESSORS[arguments.part].__name__, PARTS[arguments.part]
    inputs = example_inputs(part.config, arguments.part, 2)
    exported = OnnxExporter().export(part, inputs, config=OnnxConfig(dynamic=True))
    inputs = example_inputs(part.config, arguments.part, 3, cut=2)
    with torch.no_grad():
        difference = largest_difference(exported(**inputs), part(**inputs), outputs)
    if not difference <= arguments.max_difference:
        sys.exit(
            f"not saved: embeddings differ by {difference:.1e}, more than --max_difference {arguments.max_difference}"
        )
    folder = arguments.output_dir
    exported.save_pretrained(folder)
    try:
        open_processor(arguments.model, arguments.part, part).save_pretrained(folder)
    except (OSError, ValueError) as error:
        print(f"{arguments.model} has no {processor}, so save one in {folder}: {error}")
    print(f"{folder / 'model.onnx'}: embeddings differ from PyTorch's by {difference:.1e} at most. To use it:")
    names = {"processor": processor, "targets": ", ".join(outputs), "outputs": json.dumps(outputs)}
    print(USE.format(folder=folder.as_posix(), example=example, **names))


if __name__ == "__main__":
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    main(*HfArgumentParser(ExportArguments).parse_args_into_dataclasses())
