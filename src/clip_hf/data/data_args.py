"""Which pairs a model is trained on, as options of a command."""

import os
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import ProcessorMixin

from clip_hf.data.augmentation import Augmentation
from clip_hf.data.columns import Columns
from clip_hf.data.samples import Samples
from clip_hf.data.sources import open_source
from clip_hf.data.training_pairs import TrainingPairs

BROKEN_LIST = "broken_samples.jsonl"


@dataclass
class DataArguments:
    """Which pairs, and what is done to the images.

    Raises:
        ValueError: an option is out of range, a source is named twice, or the number of weights is not that of the
            sources.
    """

    train_data: list[str] = field(
        metadata={
            "help": "One source or several: a folder with metadata.jsonl or .csv; files ending in .jsonl, .csv, .tsv, "
            ".parquet or .tar (WebDataset), as in 'shards/{000..099}.tar', here or at a URL; a data set on the Hub, "
            "as name, name:split or name:configuration:split; or 'shapes'."
        }
    )
    train_weights: list[float] | None = field(
        default=None, metadata={"help": "Share of each source; by default each sample comes once an epoch."}
    )
    eval_data: str | None = field(default=None, metadata={"help": "A source for evaluation during training."})
    image_column: str | None = field(default=None, metadata={"help": "Column of images, if its name is unusual."})
    text_column: str | None = field(default=None, metadata={"help": "Column of captions, if its name is unusual."})
    id_column: str | None = field(
        default=None, metadata={"help": "Column that names the image of a row; rows that agree are one image."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read files shard by shard: for more than fits a disk."})
    stream_lanes: int = field(
        default=16, metadata={"help": "Shards open at a time, of all processes; best a multiple of their number."}
    )
    stream_window: int = field(
        default=1024, metadata={"help": "Samples of a shard that are shuffled at a time, of Parquet at most 32 MiB."}
    )
    crop_scale: list[float] | None = field(
        default=None,
        metadata={"help": "Least and greatest share of an image that a crop keeps; by default a full square."},
    )
    flip_probability: float = field(default=0.0, metadata={"help": "Of mirrored images."})
    jitter_probability: float = field(default=0.0, metadata={"help": "Of changed colours."})
    jitter: list[float] = field(
        default_factory=lambda: list(Augmentation.jitter),
        metadata={"help": "The most by which brightness, contrast, saturation and hue change."},
    )
    grayscale_probability: float = field(default=0.0, metadata={"help": "Of images without colours."})
    max_broken_fraction: float = field(
        default=0.1, metadata={"help": "Share of the last 1,000 samples of a source that may be broken."}
    )
    dry_run_data: int | None = field(
        default=None, metadata={"help": "Only read so many samples, report on them and draw some: no training."}
    )

    def __post_init__(self) -> None:
        """Checks what can be known before a source is opened."""
        if isinstance(self.train_data, str):  # as a recipe may have it
            self.train_data = [self.train_data]
        for name in self.train_data:
            if (number := self.train_data.count(name)) > 1:
                raise ValueError(
                    f"train_data names {name} {number} times, and a batch would hold an image twice: name it once "
                    "and, if its samples are to come more often than others, with train_weights"
                )
        if self.train_weights is not None and len(self.train_weights) != len(self.train_data):
            raise ValueError(
                f"train_weights has {len(self.train_weights)} numbers, but train_data {len(self.train_data)} sources"
            )
        if not 0 <= self.max_broken_fraction <= 1:
            raise ValueError(f"max_broken_fraction is {self.max_broken_fraction}, but must be between 0 and 1")
        if self.dry_run_data is not None and self.dry_run_data < 1:
            raise ValueError(f"dry_run_data is {self.dry_run_data}, but must be at least 1, or not given")
        if self.crop_scale is not None and len(self.crop_scale) != 2:
            raise ValueError(f"crop_scale has {len(self.crop_scale)} numbers, but must have two")
        _ = self.augmentation
        self._require_heeded()

    def _require_heeded(self) -> None:
        defaults = {field.name: field.default for field in fields(self)} | {"jitter": list(Augmentation.jitter)}
        needs = {"stream_lanes": "streaming", "stream_window": "streaming", "jitter": "jitter_probability"}
        for name, needed in needs.items():
            value = getattr(self, name)
            if value != defaults[name] and not getattr(self, needed):
                raise ValueError(f"{name} is {value}, but means nothing without {needed}: set both, or neither")
            if needed == "streaming" and value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1")

    @property
    def augmentation(self) -> Augmentation:
        """What is done to training images."""
        names = ("flip_probability", "jitter_probability", "grayscale_probability")
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        crop_scale = None if self.crop_scale is None else (self.crop_scale[0], self.crop_scale[1])
        return Augmentation(crop_scale=crop_scale, jitter=tuple(self.jitter), **options)  # type: ignore[arg-type]

    @property
    def columns(self) -> Columns:
        """Names of columns, where they are unusual."""
        return Columns(self.image_column, self.text_column, self.id_column)

    def open_training_sources(self) -> list[Samples]:
        """Returns the sources of training.

        Raises:
            ValueError: as `open_source`.
        """
        return [open_source(name, self.columns, streaming=self.streaming) for name in self.train_data]

    def open_evaluation_source(self, eval_strategy: str = "no") -> Samples | None:
        """Returns the source of evaluation, None where there is none.

        Args:
            eval_strategy: when a training evaluates.

        Raises:
            ValueError: as `open_source`; or it evaluates, and there is no source.
        """
        if self.eval_data is None and eval_strategy != "no" and self.dry_run_data is None:
            raise ValueError(
                f"eval_strategy is '{eval_strategy}', but there is nothing to evaluate on: give --eval_data, or "
                "--eval_strategy no"
            )
        return open_source(self.eval_data, self.columns, split="evaluation") if self.eval_data else None

    def training_pairs(
        self, sources: list[Samples], processor: ProcessorMixin, seed: int, output_dir: str | os.PathLike[str]
    ) -> TrainingPairs:
        """Returns the training set.

        Args:
            sources: of `open_training_sources`.
            processor: resizes images and encodes captions.
            seed: of order, captions and crops.
            output_dir: gets the list of broken samples, unless nothing is trained.

        Raises:
            ValueError: as `TrainingPairs`.
        """
        return TrainingPairs(
            sources,
            processor,
            weights=self.train_weights,
            augmentation=self.augmentation,
            seed=seed,
            num_lanes=self.stream_lanes,
            window=self.stream_window,
            max_broken_fraction=self.max_broken_fraction,
            broken_list=os.path.join(output_dir, BROKEN_LIST) if self.dry_run_data is None else None,
        )
