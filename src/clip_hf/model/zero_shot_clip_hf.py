"""Zero-shot classification: names of classes become a linear classifier of images (CLIP paper, section 3.1).

A class is described by prompts, templates filled with its name. Its weight vector is the mean of its prompts' unit
embeddings, made unit length again: an ensemble over the embedding space (section 3.1.4), which costs no more than one
prompt once it is made.

Shapes: B images, C classes, N texts, E joint embedding.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from string import Formatter
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .chunked_embedding_clip_hf import embed_texts_in_chunks
from .modeling_clip_hf_base import normalize_embeds
from .text_weights_clip_hf import check_model, describe_text_tower, identify_text_weights

logger = logging.get_logger(__name__)

FORMAT_VERSION = 1
DESCRIPTION_FILE = "zero_shot_classifier.json"
WEIGHTS_FILE = "zero_shot_classifier.safetensors"

# Prompts are sorted by length among so many batches; more would hold more of them in memory and gain nothing.
SORTED_BATCHES = 64
# Of the text tower. An accelerator has done with small passes before the kernels of the next are started.
TEXTS_PER_PASS, TEXTS_PER_PASS_OF_ACCELERATORS = 256, 1024


class ZeroShotClassifier:
    """A linear classifier of images made of class names: one unit vector a class, in the space of the embeddings.

    It belongs to the weights that the text tower had when it was made; `is_current` says whether they are the same.
    The image tower and the scale are the model's own at every call.

    Args:
        model: a `ClipHfModel` or transformers' `CLIPModel`, in evaluation mode when it is called.
        class_names: C different strings.
        templates: strings with one {} each, which made the weights of the names.
        weights: (C, E), unit length.

    Raises:
        ValueError: there are no classes or no templates, a name comes twice, a template has not exactly one {}, the
            weights are not one vector a class, or the model is of another kind.
    """

    def __init__(
        self, model: PreTrainedModel, class_names: Sequence[str], templates: Sequence[str], weights: Tensor
    ) -> None:
        check_model(model)
        self.model = model
        self.class_names = check_class_names(class_names)
        self.templates = check_templates(templates)
        self.weights = weights
        self._text_weights = identify_text_weights(model)
        expected = (len(self.class_names), model.config.projection_dim)
        if weights.shape != expected:
            raise ValueError(
                f"weights has shape {tuple(weights.shape)}, but these classes and this model need {expected}"
            )

    @classmethod
    def from_class_names(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        class_names: Sequence[str],
        templates: Sequence[str] = ("a photo of a {}.",),
        batch_size: int | None = None,
    ) -> Self:
        """Returns the classifier that the model's text tower makes of class names.

        Args:
            model: as in the class.
            tokenizer: the model's own.
            class_names: C different strings.
            templates: strings with one {} each, to be filled with a class name.
            batch_size: prompts per pass of the text tower; by default 256 on a CPU or offloaded, else 1,024.

        Raises:
            ValueError: as in the class; the model is in training mode, the tokenizer is not its own, or `batch_size`
                is below 1.
        """
        class_names, templates = check_class_names(class_names), check_templates(templates)
        _require_evaluation(model)
        batch_size = _texts_per_pass(model, batch_size)
        num_classes = max(1, SORTED_BATCHES * batch_size // len(templates))
        weights = []
        for start in range(0, len(class_names), num_classes):
            names = class_names[start : start + num_classes]
            prompts = [template.format(name) for template in templates for name in names]
            embeds = embed_texts(model, tokenizer, prompts, batch_size)
            weights.append(normalize_embeds(embeds.unflatten(0, (len(templates), len(names))).mean(dim=0)))
        return cls(model, class_names, templates, torch.cat(weights))

    @property
    def is_current(self) -> bool:
        """Whether the text tower still has the weights that this classifier was made of, in the same place."""
        return identify_text_weights(self.model) == self._text_weights

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Returns the logits (B, C) of images: cosine similarities times the model's scale, in float32 at least.

        Args:
            pixel_values: (B, 3, H, W), floating point and normalised; for a `ClipHfModel` also uint8 and raw.

        Raises:
            ValueError: the model is in training mode, or the pixels do not fit it.
        """
        return self.logits(embed_images(self.model, pixel_values))

    @torch.no_grad()
    def logits(self, image_embeds: Tensor) -> Tensor:
        """Returns the logits (B, C) of images by their unit embeddings (B, E)."""
        scale = self.model.scale if self.model.config.model_type == "clip_hf" else self.model.logit_scale.exp()
        with torch.autocast(image_embeds.device.type, enabled=False):
            return scale.to(image_embeds.device) * image_embeds @ self.weights.to(image_embeds.device).T

    def probabilities(self, pixel_values: Tensor) -> Tensor:
        """Returns the probability of each class for each image, (B, C)."""
        return self(pixel_values).softmax(dim=-1)

    def top_k(self, pixel_values: Tensor, k: int = 5) -> list[list[dict[str, Any]]]:
        """Returns the `k` most probable classes of each image, or all where there are fewer.

        Returns:
            For each image, dictionaries with "score" (the probability) and "label", the best first. Of equal scores
            the class named first comes first.

        Raises:
            ValueError: `k` is below 1.
        """
        if k < 1:
            raise ValueError(f"k is {k}, but must be at least 1")
        scores, classes = self.probabilities(pixel_values).sort(dim=-1, descending=True, stable=True)
        return [
            [{"score": score, "label": self.class_names[index]} for score, index in zip(*row, strict=True)]
            for row in zip(scores[:, :k].tolist(), classes[:, :k].tolist(), strict=True)
        ]

    def stream_top_k(self, batches: Iterable[Tensor], k: int = 5) -> Iterator[list[dict[str, Any]]]:
        """Yields what `top_k` returns, image by image, for batches of `pixel_values`; holds one batch at a time."""
        for pixel_values in batches:
            yield from self.top_k(pixel_values, k)

    def save_pretrained(self, save_directory: str | PathLike[str]) -> None:
        """Saves weights, names and templates; the folder may be the model's own checkpoint.

        Args:
            save_directory: the folder, made if needed.

        Raises:
            ValueError: the text tower's weights are no longer those that the classifier was made of.
        """
        if not self.is_current:
            raise ValueError(
                "the text tower's weights were changed or moved since this classifier was made of them: make it again "
                "with from_class_names, then save it"
            )
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        description = {
            "format_version": FORMAT_VERSION,
            "class_names": self.class_names,
            "templates": self.templates,
            "text_tower": describe_text_tower(self.model),
        }
        save_file({"weights": self.weights.cpu()}, folder / WEIGHTS_FILE)
        text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
        (folder / DESCRIPTION_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], model: PreTrainedModel) -> Self:
        """Returns a saved classifier.

        Args:
            folder: where `save_pretrained` wrote it.
            model: with the very text tower that it was made of; the image tower may have been trained since.

        Raises:
            OSError: the folder holds no classifier.
            ValueError: the classifier was made of another text tower, its format is newer than this code, or a file of
                it is damaged.
        """
        files = Path(folder) / DESCRIPTION_FILE, Path(folder) / WEIGHTS_FILE
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise OSError(f"{folder} has no {' and no '.join(missing)}: it is not where save_pretrained saved one")
        check_model(model)
        try:
            description = {"format_version": 0} | json.loads(files[0].read_text(encoding="utf-8"))
            weights = load_file(files[1], device=str(model.device))["weights"]
        except (ValueError, TypeError, KeyError, SafetensorError) as error:
            raise ValueError(f"the classifier in {folder} is damaged: {type(error).__name__}: {error}") from error
        if description["format_version"] > FORMAT_VERSION:
            raise ValueError(
                f"the classifier in {folder} has format {description['format_version']}, but this code reads formats "
                f"up to {FORMAT_VERSION}: upgrade it with `pip install --upgrade clip_hf`"
            )
        made_of, given = description.get("text_tower"), describe_text_tower(model)
        if made_of != given:
            raise ValueError(
                f"the classifier in {folder} was made of another text tower ({made_of}) than this model's ({given}): "
                "load the model it was made with, in the same dtype, or make a new one with from_class_names"
            )
        return cls(model, description["class_names"], description["templates"], weights)


@torch.no_grad()
def embed_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int | None = None
) -> Tensor:
    """Returns the unit embeddings (N, E) of texts, in their order, in float32 at least.

    The tower gets texts of like length together, without padding behind the longest. Texts beyond the context are cut,
    their end token kept, with a warning.

    Args:
        model: a `ClipHfModel` or transformers' `CLIPModel`.
        tokenizer: the model's own.
        texts: N strings.
        batch_size: texts per pass of the text tower; by default 256 on a CPU or offloaded, else 1,024.

    Raises:
        ValueError: the model is of another kind or in training mode, the tokenizer is not its own, or `batch_size` is
            below 1.
    """
    _require_evaluation(model)
    batch_size = _texts_per_pass(model, batch_size)
    text_config = model.config.text_config
    # Released CLIPModel configurations name an id that is not the end of a text, and that CLIPModel overlooks.
    eos_token_id = text_config.eos_token_id if model.config.model_type == "clip_hf" else tokenizer.eos_token_id
    length = min(tokenizer.model_max_length, text_config.max_position_embeddings)
    encoding = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
    if encoding.input_ids.shape[1] == length:  # otherwise no text was cut
        warn_of_cut_texts(encoding, length)

    def embed(input_ids: Tensor) -> Tensor:
        options = text_feature_options(model, input_ids)
        return normalize_embeds(model.get_text_features(input_ids, **options).pooler_output)

    return embed_texts_in_chunks(embed, _place(encoding.input_ids, model), eos_token_id, batch_size)


def warn_of_cut_texts(encoding: BatchEncoding, length: int) -> None:
    """Warns of texts that a tokenizer of the tokenizers library has cut; others do not tell.

    Args:
        encoding: of many texts.
        length: to which they were cut, in tokens.
    """
    encodings = encoding.encodings or ()
    if num_cut := sum(bool(text.overflowing) for text in encodings):
        logger.warning(f"{num_cut} of {len(encodings)} texts are longer than {length} tokens and were cut")


@torch.no_grad()
def embed_images(model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """Returns the unit embeddings (B, E) of images, in float32 at least.

    Args:
        model: a `ClipHfModel` or transformers' `CLIPModel`.
        pixel_values: (B, 3, H, W), floating point and normalised; for a `ClipHfModel` also uint8 and raw.

    Raises:
        ValueError: the model is of another kind or in training mode, or the pixels do not fit it.
    """
    _require_evaluation(model)
    if model.config.model_type != "clip_hf" and not pixel_values.is_floating_point():
        raise ValueError(f"pixel_values is {pixel_values.dtype}, but only a ClipHfModel normalises raw pixels itself")
    features = model.get_image_features(_place(pixel_values, model), **image_feature_options(model))
    return normalize_embeds(features.pooler_output)


def image_feature_options(model: PreTrainedModel) -> dict[str, bool]:
    """Returns what makes `get_image_features` name its features, and compute nothing else where the model knows it."""
    return {"return_dict": True} | ({"pooled_only": True} if model.config.model_type == "clip_hf" else {})


def text_feature_options(model: PreTrainedModel, input_ids: Tensor) -> dict[str, Any]:
    """Returns the same for `get_text_features` of texts (B, L), and what makes it compute nothing twice."""
    ours = model.config.model_type == "clip_hf"
    return image_feature_options(model) | ({"prefixes": model.text_model.find_prefixes(input_ids)} if ours else {})


def check_strings(name: str, values: Sequence[str]) -> tuple[str, ...]:
    """Returns strings as a tuple; raises a ValueError with their `name` unless they are strings, one at least."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name} is {values!r:.80}, of type {type(values).__name__}: pass a list of strings")
    strings = tuple(values)
    if not strings:
        raise ValueError(f"{name} is empty: pass one string at least")
    for string in strings:
        if not isinstance(string, str):
            raise ValueError(f"{name} has {string!r:.80}, of type {type(string).__name__}: every one must be a string")
    return strings


def check_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Returns class names as a tuple; raises ValueError unless they are different strings, one at least."""
    names = check_strings("class_names", class_names)
    duplicates = [name for name, count in Counter(names).items() if count > 1]
    if duplicates:
        raise ValueError(
            f"class_names has these more than once, {', '.join(map(repr, duplicates))}: name each class once"
        )
    return names


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Returns templates as a tuple; raises ValueError unless each has exactly one {}, and there is one at least."""
    templates = check_strings("templates", templates)
    for template in templates:
        try:
            fields = [field for _, *field in Formatter().parse(template) if field[0] is not None]
        except ValueError as error:
            raise ValueError(f"{template!r} is not a template: {error}; write {{{{ or }}}} for a brace") from error
        if fields != [["", "", None]]:
            raise ValueError(f"the template {template!r} must have exactly one {{}}, where the class name goes")
    return templates


def _require_evaluation(model: PreTrainedModel) -> None:
    check_model(model)
    if model.training:
        raise ValueError("the model is in training mode, where batch norm and dropout differ: call model.eval()")


def _texts_per_pass(model: PreTrainedModel, batch_size: int | None) -> int:
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
    is_small = model.device.type in ("cpu", "meta")  # weights are offloaded where memory is short
    return batch_size or (TEXTS_PER_PASS if is_small else TEXTS_PER_PASS_OF_ACCELERATORS)


def _place(inputs: Tensor, model: PreTrainedModel) -> Tensor:
    # Offloaded weights are on the meta device between the passes; accelerate then brings the inputs to them.
    return inputs if model.device.type == "meta" else inputs.to(model.device)
