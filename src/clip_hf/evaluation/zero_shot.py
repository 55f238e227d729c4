"""Zero-shot classification from kept features.

Shapes: N images, C classes, E joint embedding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from clip_hf.evaluation.classification import Predictions, predict
from clip_hf.evaluation.features import FeatureCache
from clip_hf.model.text_weights_clip_hf import TEXT_TOWERS
from clip_hf.model.zero_shot_clip_hf import ZeroShotClassifier, check_class_names, check_templates

IMAGES_PER_BLOCK = 4096


def class_weights(cache: FeatureCache, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Returns the weights (C, E) of classes: those of `ZeroShotClassifier`, and the same mean for SigLIP.

    Args:
        cache: of the model.
        class_names: C names.
        templates: as in `ZeroShotClassifier`.

    Raises:
        ValueError: as `ZeroShotClassifier`.
    """
    model, tokenizer = cache.embedder.model, cache.embedder.tokenizer
    if model.config.model_type in TEXT_TOWERS:
        batch_size = cache.embedder.batch_size
        classifier = ZeroShotClassifier.from_class_names(model, tokenizer, class_names, templates, batch_size)
        return classifier.weights.float().cpu()
    names, templates = check_class_names(class_names), check_templates(templates)
    embeds = cache.embed_texts([template.format(name) for name in names for template in templates])
    return torch.nn.functional.normalize(embeds.unflatten(0, (len(names), len(templates))).mean(dim=1), dim=-1)


def classify(features: Tensor, weights: Tensor, scale: float, labels: Tensor) -> Predictions:
    """Returns the predictions for images, a block at a time.

    Args:
        features: (N, E), unit length.
        weights: (C, E), unit length.
        scale: linear; it makes the probabilities and leaves their order as it is.
        labels: (N,) the right classes.
    """
    weights = weights.double().T
    blocks = zip(features.split(IMAGES_PER_BLOCK), labels.split(IMAGES_PER_BLOCK), strict=True)
    predictions = [predict(scale * (some.double() @ weights), right) for some, right in blocks]
    return Predictions(*(torch.cat(part) for part in zip(*predictions, strict=True)))


def scale_of(cache: FeatureCache) -> float:
    """Returns the factor that a model multiplies similarities by."""
    model = cache.embedder.model
    return (model.scale if model.config.model_type == "clip_hf" else model.logit_scale.exp()).item()
