"""Zero-shot classification of labelled images while a model is trained (CLIP paper, section 3.1)."""

from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, ProcessorMixin

from clip_hf.data.augmentation import evaluation_pixels
from clip_hf.data.columns import Columns
from clip_hf.data.samples import Samples
from clip_hf.data.sources import open_source
from clip_hf.distributed import all_gather, rank, world_size
from clip_hf.evaluation.class_names import ClassNames, number_classes, read_class_names
from clip_hf.evaluation.classification import Predictions, classification_metrics, predict
from clip_hf.evaluation.templates import load_templates
from clip_hf.model.zero_shot_clip_hf import ZeroShotClassifier, check_templates


@dataclass
class ZeroShotArguments:
    """What is classified at each evaluation, if anything.

    Raises:
        ValueError: an option is given without the data it is about, or the templates are neither a set nor a file.
    """

    zero_shot_data: str | None = field(
        default=None, metadata={"help": "Labelled images to classify by the names of their classes; as eval_data."}
    )
    zero_shot_label_column: str = field(default="label_name", metadata={"help": "Column of an image's class."})
    zero_shot_class_names: str | None = field(
        default=None, metadata={"help": "File of class names, if the labels are none; as of evaluate_zero_shot.py."}
    )
    zero_shot_templates: str = field(default="general", metadata={"help": "plain, general, or a file of templates."})

    def __post_init__(self) -> None:
        """Checks what can be known before the data is opened."""
        if self.zero_shot_class_names is not None and self.zero_shot_data is None:
            raise ValueError("zero_shot_class_names is given, but no images: give zero_shot_data as well")
        load_templates(self.zero_shot_templates)

    def open(self, processor: ProcessorMixin, batch_size: int) -> "ZeroShotEvaluation | None":
        """Returns the evaluation, None where there is no data.

        Args:
            processor: the model's.
            batch_size: images, and prompts, at a time.

        Raises:
            ValueError: as `open_source`, `read_class_names` and `ZeroShotEvaluation`.
        """
        if self.zero_shot_data is None:
            return None
        names = None if self.zero_shot_class_names is None else read_class_names(self.zero_shot_class_names)
        columns = Columns(text=self.zero_shot_label_column)
        samples = open_source(self.zero_shot_data, columns, split="evaluation")
        return ZeroShotEvaluation(samples, processor, batch_size, names, load_templates(self.zero_shot_templates))


class ZeroShotEvaluation:
    """Classifies images by the names of their classes, on all processes together.

    Args:
        samples: images whose captions are the labels; the same on every process.
        processor: the model's.
        batch_size: images, and prompts, at a time.
        class_names: as of `number_classes`.
        templates: as in `ZeroShotClassifier`.

    Raises:
        ValueError: as `number_classes` and `ZeroShotClassifier`.
    """

    def __init__(
        self,
        samples: Samples,
        processor: ProcessorMixin,
        batch_size: int,
        class_names: ClassNames | None = None,
        templates: tuple[str, ...] = ("a photo of a {}.",),
    ) -> None:
        self.class_names, self.labels = number_classes(list(samples.all_captions()), class_names)
        if len(self.labels) != len(samples):
            raise ValueError(f"{samples.name} has {len(samples)} images, but {len(self.labels)} labels")
        self.templates = check_templates(templates)
        self._samples, self._processor, self._batch_size = samples, processor, batch_size

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        """Returns the accuracies of `classification_metrics`; all processes call it.

        Args:
            model: whole on every process, in evaluation mode.

        Raises:
            ValueError: an image cannot be read.
        """
        tokenizer = self._processor.tokenizer
        classifier = ZeroShotClassifier.from_class_names(
            model, tokenizer, self.class_names, self.templates, self._batch_size
        )
        # Every process has as many, so that none waits for another; what comes twice is left out below.
        num_rows = -(-len(self.labels) // world_size())
        rows = torch.arange(rank() * num_rows, (rank() + 1) * num_rows) % len(self.labels)
        found = [self._classify(classifier, some) for some in rows.split(self._batch_size)]
        parts = (torch.cat(part).to(model.device) for part in zip(*found, strict=True))
        predictions = Predictions(*(all_gather(part)[: len(self.labels)].cpu() for part in parts))
        metrics = classification_metrics(predictions, self.labels, len(self.class_names))
        return {name: value for name, value in metrics.items() if name.endswith("accuracy")}

    def _classify(self, classifier: ZeroShotClassifier, rows: torch.Tensor) -> Predictions:
        images = (self._samples[row]["image"] for row in rows.tolist())
        pixels = torch.stack([evaluation_pixels(image, self._processor.image_processor) for image in images])
        return predict(classifier(pixels.to(classifier.model.device)), self.labels[rows].to(classifier.model.device))
