"""A converted checkpoint against the implementation that it comes from, or goes to, on random inputs."""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from clip_hf.conversion.foreign_configs import to_open_clip_model_config
from clip_hf.conversion.layouts import Layout, is_ignored
from clip_hf.model.configuration_clip_hf import ClipHfConfig
from clip_hf.model.modeling_clip_hf import ClipHfModel
from clip_hf.model.openai_checkpoint_clip_hf import read_openai_checkpoint
from clip_hf.model.tokenization_clip_hf import ClipHfTokenizer

MAX_DIFFERENCE = 1e-4
BATCH_SIZE = 3

ORIGINALS: dict[Layout, str] = {"transformers": "transformers", "open_clip": "open_clip", "openai": "open_clip"}
PACKAGES = {"transformers": "transformers", "open_clip": "open_clip_torch"}

Encode = Callable[[Tensor], Tensor]


@dataclass
class Comparison:
    """How far a converted checkpoint is from an original.

    Args:
        original: whose code gave the features that ours are compared with; None if none did.
        difference: the largest one of features of unit length, images and texts, on random inputs in float32.
        reason: why there is no original.
    """

    original: str | None
    difference: float = 0.0
    reason: str = "it is not installed"

    def __str__(self) -> str:
        """What to tell the user."""
        if self.original is None:
            return f"not checked against the original: {self.reason}"
        return f"differ by at most {self.difference:.1e} from those of {self.original} ({MAX_DIFFERENCE:.0e} allowed)"


@dataclass
class Files:
    """A checkpoint's files.

    Args:
        place: a file, a folder or a repository.
        layout: whose files these are.
        trust_pickle: whether to read pickles that may run code.
    """

    place: str
    layout: Layout
    trust_pickle: bool = False


def compare(source: Files, target: Files, config: ClipHfConfig, dtype: torch.dtype | None = None) -> Comparison:
    """Returns how far our model of the target's files is from the originals of source and target.

    Args:
        source: what was converted.
        target: what was written.
        config: of the model.
        dtype: what the weights were rounded to; None if they were not.

    Raises:
        ValueError: they differ by more than `MAX_DIFFERENCE`.
    """
    if not {source.layout, target.layout} & ORIGINALS.keys():
        return Comparison(None, reason="both are this package's own")
    ours = _features(_open_ours, target, config, None)
    originals: list[str] = []
    differences = [0.0]
    for files in (source, target):
        original = ORIGINALS.get(files.layout)
        if original is None or importlib.util.find_spec(original) is None:
            continue
        open_original = _open_with_transformers if original == "transformers" else _open_with_open_clip
        theirs = _features(open_original, files, config, dtype)
        difference = (ours - theirs).abs().max().item()
        name = f"{original} {importlib.metadata.version(PACKAGES[original])}"
        if not difference <= MAX_DIFFERENCE:  # nan is above every bound
            raise ValueError(
                f"the converted model's features differ by {difference:.1e} from those that {name} computes for "
                f"{files.place}; {MAX_DIFFERENCE:.0e} are allowed"
            )
        originals.append(name)
        differences.append(difference)
    return Comparison(" and ".join(dict.fromkeys(originals)) or None, max(differences))


def require_same_tokens(tokenizer: ClipHfTokenizer | None, target: Files) -> None:
    """Raises ValueError unless the files that were written hold every token of a tokenizer, with the same id.

    Args:
        tokenizer: the source's; None if it has none.
        target: what was written; OpenAI's files hold no tokenizer.
    """
    if tokenizer is None or target.layout == "openai":
        return
    read = ClipHfTokenizer.from_pretrained if target.layout == "clip_hf" else CLIPTokenizer.from_pretrained
    written = read(target.place)
    # Added tokens besides: one of the vocabulary may be among them, and texts are then split otherwise.
    different = tokenizer.get_vocab().items() ^ written.get_vocab().items()
    different |= tokenizer.added_tokens_encoder.items() ^ written.added_tokens_encoder.items()
    other = sorted({token for token, _ in different})
    if other:
        raise ValueError(
            f"the tokenizer that was written has {len(written)} tokens, the source's {len(tokenizer)}; these differ: "
            f"{', '.join(other[:5])}{' ...' if other[5:] else ''}"
        )


def random_inputs(config: ClipHfConfig, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns normalised pixels (B, 3, H, W) and ids of texts of several lengths (B, L)."""
    generator = torch.Generator().manual_seed(seed)
    text, vision = config.text_config, config.vision_config
    length = text.max_position_embeddings
    pixels = torch.randn(BATCH_SIZE, vision.num_channels, vision.image_size, vision.image_size, generator=generator)
    ids = torch.randint(0, min(text.bos_token_id, text.eos_token_id), (BATCH_SIZE, length), generator=generator)
    ids[:, 0] = text.bos_token_id
    ends = torch.randint(2, length, (BATCH_SIZE, 1), generator=generator)
    return pixels, ids.masked_fill(torch.arange(length) >= ends, text.eos_token_id)


@torch.no_grad()
def _features(
    open_model: Callable[[Files, ClipHfConfig], tuple[nn.Module, Encode, Encode]],
    files: Files,
    config: ClipHfConfig,
    dtype: torch.dtype | None,
) -> Tensor:
    """Returns features (2 * B, E) of images and texts at unit length; one model is in memory at a time."""
    model, encode_images, encode_texts = open_model(files, config)
    for name, tensor in model.state_dict().items():
        if dtype is not None and tensor.is_floating_point() and name != "logit_scale":
            tensor.copy_(tensor.to(dtype))
    pixels, ids = random_inputs(config)
    return nn.functional.normalize(torch.cat([encode_images(pixels), encode_texts(ids)]), dim=-1)


def _open_ours(files: Files, config: ClipHfConfig) -> tuple[nn.Module, Encode, Encode]:
    is_openai = files.layout == "openai"
    load = ClipHfModel.from_openai if is_openai else ClipHfModel.from_pretrained
    return _with_encoders(load(files.place, dtype=torch.float32))


def _open_with_transformers(files: Files, config: ClipHfConfig) -> tuple[nn.Module, Encode, Encode]:
    model = CLIPModel.from_pretrained(files.place, dtype=torch.float32, weights_only=not files.trust_pickle)
    return _with_encoders(model)


def _with_encoders(model: Any) -> tuple[nn.Module, Encode, Encode]:
    return (
        model,
        lambda pixels: model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output,
        lambda ids: model.get_text_features(input_ids=ids, return_dict=True).pooler_output,
    )


def _open_with_open_clip(files: Files, config: ClipHfConfig) -> tuple[nn.Module, Encode, Encode]:
    import open_clip

    if files.layout == "openai":  # through our reader: OpenCLIP's own runs the archive
        model = open_clip.model.CLIP(**to_open_clip_model_config(config))
        weights = read_openai_checkpoint(files.place, files.trust_pickle)
        model.load_state_dict({name: tensor for name, tensor in weights.items() if not is_ignored(name)})
    else:
        name = f"local-dir:{files.place}" if Path(files.place).is_dir() else f"hf-hub:{files.place}"
        model = open_clip.create_model(name, precision="fp32", weights_only=not files.trust_pickle)
    model.eval()
    return model, model.encode_image, model.encode_text
