"""Exports a checkpoint, or one of its towers, to ONNX, checks it with ONNX Runtime, and shows the lines that use it.

python scripts/export_onnx.py --model outputs/demo/model --part image --output_dir outputs/onnx
"""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModel, HfArgumentParser
from transformers.exporters import OnnxConfig, OnnxExporter

import clip_hf  # noqa: F401  registers the model classes


@dataclass
class ExportArguments:
    """What to export, where to, and how exact it must be."""

    model: str = field(metadata={"help": "checkpoint folder or Hub repository"})
    output_dir: Path = field(metadata={"help": "folder for model.onnx and its weights"})
    part: Literal["joint", "image", "text"] = field(
        default="joint", metadata={"help": "the whole model, or the image or text tower alone"}
    )
    max_difference: float = field(
        default=1e-4, metadata={"help": "largest allowed difference of unit embeddings to PyTorch's"}
    )


def example_inputs(config: Any, part: str, batch_size: int) -> dict[str, Tensor]:
    """Returns random inputs: `input_ids` (batch_size, L), normalised `pixel_values` (batch_size, 3, H, W), or both."""
    text, vision = config.text_config, config.vision_config
    length, eos = text.max_position_embeddings, text.eos_token_id
    input_ids = torch.randint(0, min(text.bos_token_id, eos), (batch_size, length))
    input_ids[:, 0] = text.bos_token_id
    ends = torch.randint(2, length, (batch_size, 1))
    input_ids = input_ids.masked_fill(torch.arange(length) >= ends, eos)
    pixel_values = torch.randn(batch_size, vision.num_channels, vision.image_size, vision.image_size)
    inputs = {"input_ids": input_ids, "pixel_values": pixel_values}
    return {"joint": inputs, "image": {"pixel_values": pixel_values}, "text": {"input_ids": input_ids}}[part]


def largest_difference(output: Any, expected: Any) -> float:
    """Returns the largest difference of the embeddings, compared at unit length."""
    names = [name for name in ("image_embeds", "text_embeds") if expected.get(name) is not None]
    pairs = ((torch.as_tensor(output[name]), expected[name]) for name in names)
    normalize = torch.nn.functional.normalize
    return max((normalize(found, dim=-1) - normalize(wanted, dim=-1)).abs().max().item() for found, wanted in pairs)


def main(arguments: ExportArguments) -> None:
    """Exports, compares on another batch size than the example's, saves only what agrees."""
    model = AutoModel.from_pretrained(arguments.model, dtype=torch.float32).eval()
    part = {"joint": model, "image": model.vision_model, "text": model.text_model}[arguments.part]
    if arguments.part != "joint" and getattr(part, "projection", None) is None:
        sys.exit(
            f"export_onnx.py: the {arguments.part} tower of a {type(model).__name__} gives no embeddings by itself: "
            "save the checkpoint with ClipHfModel first, or export --part joint"
        )
    exported = OnnxExporter().export(
        part, example_inputs(model.config, arguments.part, batch_size=2), config=OnnxConfig(dynamic=True)
    )
    inputs = example_inputs(model.config, arguments.part, batch_size=3)
    with torch.no_grad():
        difference = largest_difference(exported(**inputs), part(**inputs))
    if difference > arguments.max_difference:
        sys.exit(
            f"not saved: embeddings differ by {difference:.1e}, more than --max_difference {arguments.max_difference}"
        )
    exported.save_pretrained(arguments.output_dir)
    path = arguments.output_dir / "model.onnx"
    embeds = "image_embeds" if "pixel_values" in inputs else "text_embeds"
    fed = ", ".join(f'"{name}": inputs["{name}"]' for name in inputs)
    print(
        f"{path}: embeddings differ from PyTorch's by at most {difference:.1e}\n\nThree lines that use it:\n"
        '    inputs = processor(images=images, text=texts, padding=True, return_tensors="np")\n'
        f'    session = onnxruntime.InferenceSession("{path}")\n'
        f'    ({embeds},) = session.run(["{embeds}"], {{{fed}}})'
    )


if __name__ == "__main__":
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    main(*HfArgumentParser(ExportArguments).parse_args_into_dataclasses())
