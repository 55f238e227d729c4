"""Zero-shot classification of labelled images while a model is trained (CLIP paper, section 3.1)."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import PreTrainedModel, ProcessorMixin

from clip_hf.data.augmentation import evaluation_pixels
from clip_hf.data.columns import Columns
from clip_hf.data.samples import Samples
from clip_hf.data.sources import open_source
from clip_hf.distributed import all_gather, rank, world_size
from clip_hf.evaluation.class_names import Classes, ClassNames, read_class_names
from clip_hf.evaluation.classification import classification_metrics
from clip_hf.evaluation.templates import load_templates
from clip_hf.evaluation.zero_shot import classify, scale_of
from clip_hf.model.zero_shot_clip_hf import ZeroShotClassifier, check_templates, embed_images
from clip_hf.training.interruption import outlasting_sigterm

UNLABELLED, BROKEN = -1, -2
ACCURACIES = ("top_1_accuracy", "top_5_accuracy", "mean_per_class_accuracy")


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

    @property
    def metric_names(self) -> list[str]:
        """What an evaluation may give, the accuracy of the first five where there are more classes."""
        return [f"zero_shot_{name}" for name in ACCURACIES] if self.zero_shot_data is not None else []

    def open(
        self, processor: ProcessorMixin, batch_size: int, num_workers: int = 0, image_column: str | None = None
    ) -> "ZeroShotEvaluation | None":
        """Returns the evaluation, None where there is no data.

        Args:
            processor: the model's.
            batch_size: images at a time.
            num_workers: processes that decode images, for each process.
            image_column: of the data, if its name is unusual.

        Raises:
            ValueError: as `open_source`, `read_class_names` and `ZeroShotEvaluation`.
        """
        if self.zero_shot_data is None:
            return None
        names = None if self.zero_shot_class_names is None else read_class_names(self.zero_shot_class_names)
        columns = Columns(image=image_column, text=self.zero_shot_label_column)
        samples = open_source(self.zero_shot_data, columns, split="evaluation")
        templates = load_templates(self.zero_shot_templates)
        return ZeroShotEvaluation(samples, processor, batch_size, names, templates, num_workers)


class ZeroShotEvaluation:
    """Classifies images by the names of their classes, on all processes together.

    Args:
        samples: images whose captions are the labels; the same on every process.
        processor: the model's.
        batch_size: images at a time.
        class_names: as of `Classes.find`.
        templates: as in `ZeroShotClassifier`.
        num_workers: processes that decode images, for each process.

    Raises:
        ValueError: as `Classes.find` and `ZeroShotClassifier`.
    """

    def __init__(
        self,
        samples: Samples,
        processor: ProcessorMixin,
        batch_size: int,
        class_names: ClassNames | None = None,
        templates: tuple[str, ...] = ("a photo of a {}.",),
        num_workers: int = 0,
    ) -> None:
        self.classes = Classes.find(samples.all_captions(), class_names)
        self.templates = check_templates(templates)
        self._images = _LabelledImages(samples, self.classes, processor)
        self._tokenizer = processor.tokenizer
        self._batch_size, self._num_workers = batch_size, num_workers

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        """Returns the accuracies of `classification_metrics`, and `num_broken` images; all processes call it.

        Args:
            model: whole on every process, in evaluation mode.

        Raises:
            ValueError: not one image can be read.
        """
        names = self.classes.names
        classifier = ZeroShotClassifier.from_class_names(model, self._tokenizer, names, self.templates)
        # Every process has as many rows, so that all send as much; what is past the end stays without a label.
        num_rows = -(-len(self._images) // world_size())
        rows = range(rank() * num_rows, min((rank() + 1) * num_rows, len(self._images)))
        features = classifier.weights.new_zeros(num_rows, classifier.weights.shape[1])
        labels = torch.full((num_rows,), UNLABELLED, device=features.device)
        loader: DataLoader[Any] = DataLoader(
            Subset(self._images, rows),
            self._batch_size,
            num_workers=self._num_workers,
            collate_fn=list,
            worker_init_fn=outlasting_sigterm(),
            generator=torch.Generator(),  # leaves alone what training draws from
        )
        for number, batch in enumerate(loader):
            here = slice(number * self._batch_size, number * self._batch_size + len(batch))
            labels[here] = torch.tensor([label for label, _ in batch], device=labels.device)
            pixels = [pixels for _, pixels in batch if pixels is not None]
            if pixels:
                embeds = embed_images(model, torch.stack(pixels).to(model.device))
                features[here][labels[here] >= 0] = embeds.to(features.dtype)
        features, labels = all_gather(features).cpu(), all_gather(labels).cpu()
        known = labels >= 0
        weights = classifier.weights.cpu()
        predictions = classify(features[known], weights, scale_of(model), labels[known])
        metrics = classification_metrics(predictions, labels[known], len(names))
        accuracies = {name: metrics[name] for name in ACCURACIES if name in metrics}
        return accuracies | {"num_broken": int((labels == BROKEN).sum())}


class _LabelledImages(Dataset):
    """The class of each image with its pixels (3, H, W), or the reason why it has none, and None."""

    def __init__(self, samples: Samples, classes: Classes, processor: ProcessorMixin) -> None:
        self._samples, self._classes, self._processor = samples, classes, processor

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[int, Tensor | None]:
        try:
            sample = self._samples[index]
            texts = [text for text in sample["captions"] if self._classes.holds(text)]
            if not texts:
                return UNLABELLED, None
            pixels = evaluation_pixels(sample["image"], self._processor.image_processor)
        except (ValueError, OSError):
            return BROKEN, None
        return int(self._classes.of([texts])[0]), pixels
