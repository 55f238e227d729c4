"""Zero-shot classification from kept features.

Probabilities are the softmax over the classes: for SigLIP, too, which was trained with a sigmoid for each pair. Its
calibration error is that of a choice among the classes, not of its own probabilities.

Shapes: N images, C classes, E joint embedding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from clip_hf.evaluation.classification import Predictions, predict
from clip_hf.evaluation.features import FeatureCache
from clip_hf.model.modeling_clip_hf import MAX_SCALE
from clip_hf.model.text_weights_clip_hf import TEXT_TOWERS
from clip_hf.model.zero_shot_clip_hf import ZeroShotClassifier, check_class_names, check_templates

LOGITS_PER_BLOCK = 1 << 22
"""32 MB in float64, of which a few are held at a time."""


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
    num_images = max(1, LOGITS_PER_BLOCK // weights.shape[1])
    blocks = zip(features.split(num_images), labels.split(num_images), strict=True)
    predictions = [predict(scale * (some.double() @ weights), right) for some, right in blocks]
    return Predictions(*(torch.cat(part) for part in zip(*predictions, strict=True)))


def scale_of(model: PreTrainedModel) -> float:
    """Returns the factor that a model multiplies similarities by; of a `ClipHfModel`, 100 at most."""
    scale = model.logit_scale.detach().double().exp().item()
    return min(scale, MAX_SCALE) if model.config.model_type == "clip_hf" else scale
