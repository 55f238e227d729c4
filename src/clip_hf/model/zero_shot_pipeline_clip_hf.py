"""The zero-shot pipeline that computes the features of a label set once (CLIP paper, section 3.1)."""

import os
from pkgutil import resolve_name
from typing import Any

from torch import Tensor
from transformers import BatchFeature, PreTrainedModel
from transformers.pipelines import PIPELINE_REGISTRY, ZeroShotImageClassificationPipeline

from .image_decoding_clip_hf import ImageDecodingError
from .image_sources_clip_hf import decode_base64, decode_source
from .text_weights_clip_hf import check_model
from .zero_shot_clip_hf import ZeroShotClassifier, check_strings, check_templates, embed_images

TASK = "zero-shot-image-classification"
DEFAULT_TEMPLATES = ("This is a photo of {}.",)  # the stock pipeline's
MAX_LABEL_SETS = 8

# `local_files_only` has done its work before: transformers' `pipeline` hands it on to every pipeline.
ARGUMENTS = {"candidate_labels", "hypothesis_template", "timeout", "local_files_only"}


class ClipHfZeroShotPipeline(ZeroShotImageClassificationPipeline):
    """transformers' zero-shot pipeline, with label features that are computed once and kept.

    It takes and returns what the stock pipeline does, but one more image costs one pass of the image tower, however
    many labels there are: the stock pipeline embeds all labels again with every image or batch. Further:

    - `hypothesis_template` may be a list of templates, whose embeddings are averaged (CLIP paper, section 3.1.4).
    - Labels longer than the context are cut, with a warning, whichever tokenizer there is.
    - Images are whatever the image processor reads, in the same way: with 16 bits scaled and transparency on white,
      where the stock pipeline cuts off the one and blackens the other. An error names the image.
    - An argument that does not exist raises a ValueError instead of being dropped. `tokenizer_kwargs` does not: texts
      are always padded and cut as the model needs.

    The features of the last few label sets are kept for as long as the text tower's weights are what they were: the
    model may be trained, cast or moved between two calls. What changes features but no weights, as switching PEFT
    adapters does, cannot be seen: call `forget_labels` after it. An image tower that was compiled and frozen keeps the
    weights that it had.

    Raises:
        ValueError: the model is neither a `ClipHfModel` nor transformers' `CLIPModel`.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._classifiers: dict[tuple[Any, ...], ZeroShotClassifier] = {}
        super().__init__(**kwargs)

    def check_model_type(self, supported_models: Any) -> None:
        """Raises ValueError unless the model is a CLIP; the list given here has transformers' own classes alone."""
        check_model(self.model)

    def forget_labels(self) -> None:
        """Drops the features of all labels; the next call computes them again."""
        self._classifiers.clear()

    def preprocess(self, image: Any, timeout: float | None = None) -> BatchFeature:
        """Returns the `pixel_values` (1, 3, H, W) of a base64 string, or of what `decode_source` reads.

        Raises:
            ValueError: as `decode_source`.
        """
        name = f"{image:.80}" if isinstance(image, str) else "the image"
        source = _decode_base64(image)
        try:
            decoded = decode_source(source, name, timeout=timeout)
        except ImageDecodingError as error:
            if source is image:
                raise
            message = f"{name} is neither a file that exists nor an image in base64"
            raise ImageDecodingError(f"{message}: {error}") from error
        return self.image_processor(images=[decoded], return_tensors="pt").to(self.dtype)

    def postprocess(self, model_outputs: dict[str, Tensor], candidate_labels: tuple[str, ...]) -> list[dict[str, Any]]:
        """Returns the labels with their probabilities ("score", "label"), the best first."""
        return super().postprocess({**model_outputs, "candidate_labels": candidate_labels})

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        unknown = sorted(kwargs.keys() - ARGUMENTS)
        if unknown:
            raise ValueError(f"there is no argument {', '.join(unknown)}; there are {', '.join(sorted(ARGUMENTS))}")
        preprocess_params, forward_params, postprocess_params = {}, {}, {}
        if "timeout" in kwargs:
            preprocess_params["timeout"] = kwargs["timeout"]
        if "candidate_labels" in kwargs:
            labels = check_strings("candidate_labels", kwargs["candidate_labels"])
            forward_params["candidate_labels"] = postprocess_params["candidate_labels"] = labels
        if "hypothesis_template" in kwargs:
            templates = kwargs["hypothesis_template"]
            forward_params["templates"] = check_templates((templates,) if isinstance(templates, str) else templates)
        return preprocess_params, forward_params, postprocess_params

    def _forward(
        self,
        model_inputs: BatchFeature,
        candidate_labels: tuple[str, ...],
        templates: tuple[str, ...] = DEFAULT_TEMPLATES,
    ) -> dict[str, Tensor]:
        names = tuple(dict.fromkeys(candidate_labels))
        # First, so that a GPU has the image while the processor looks whether the labels' features are current.
        image_embeds = embed_images(self.model, model_inputs["pixel_values"])
        logits = self._classifier(names, templates).logits(image_embeds)
        if len(names) < len(candidate_labels):  # a label given twice is answered twice
            columns = {name: column for column, name in enumerate(names)}
            logits = logits[:, [columns[label] for label in candidate_labels]]
        return {"logits": logits}

    def _classifier(self, names: tuple[str, ...], templates: tuple[str, ...]) -> ZeroShotClassifier:
        key = names, templates, self.tokenizer, self.model
        classifier = self._classifiers.pop(key, None)
        if classifier is None or not classifier.is_current:
            classifier = ZeroShotClassifier.from_class_names(self.model, self.tokenizer, names, templates)
        self._classifiers[key] = classifier  # the last used comes last
        if len(self._classifiers) > MAX_LABEL_SETS:
            del self._classifiers[next(iter(self._classifiers))]
        return classifier


def _decode_base64(image: Any) -> Any:
    if not isinstance(image, str) or os.path.exists(image):
        return image
    try:
        return decode_base64(image)
    except ValueError:  # a URL, or a file that is not there
        return image


class ClipHfZeroShotDispatch(ZeroShotImageClassificationPipeline):
    """What transformers' registry holds for the task: our pipeline for our models, any other model's as before."""

    before: Any = ZeroShotImageClassificationPipeline

    def __new__(cls, model: PreTrainedModel, **kwargs: Any) -> Any:
        """Returns the pipeline of a model."""
        if model.config.model_type == "clip_hf":
            return ClipHfZeroShotPipeline(model=model, **kwargs)
        pipeline_class = resolve_name(cls.before) if isinstance(cls.before, str) else cls.before
        return pipeline_class(model=model, **kwargs)


def register_zero_shot_pipeline() -> None:
    """Lets transformers' `pipeline` choose `ClipHfZeroShotPipeline` for our models, where this code is installed.

    A checkpoint's `custom_pipelines` says the same to those who have only the checkpoint. transformers refuses that
    entry without `trust_remote_code`, so an installed `ClipHfConfig` does not read it.
    """
    entry = PIPELINE_REGISTRY.supported_tasks[TASK]
    if entry["impl"] is not ClipHfZeroShotDispatch:
        ClipHfZeroShotDispatch.before = entry["impl"]
        entry["impl"] = ClipHfZeroShotDispatch
