"""What the scripts of evaluation share: their options, the model, the features, results.json."""

import json
import os
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, HfArgumentParser, PreTrainedModel

from clip_hf.distributed import rank
from clip_hf.evaluation.class_names import Classes, ClassNames
from clip_hf.evaluation.embedding import Embedder, Modality, write_text
from clip_hf.evaluation.features import FeatureCache, ImageFeatures, Samples
from clip_hf.model.image_processing_clip_hf import ClipHfImageProcessor
from clip_hf.model_card.credentials import without_credentials
from clip_hf.model_card.evaluations import FOLDER, digest_weights

LEAST = {"limit": 1, "batch_size": 1, "num_workers": 0, "shard_size": 1, "num_queries": 1, "num_draws": 1}


class EmbedderArguments(Protocol):
    """The options of every script that embeds: those of `EvaluationArguments`."""

    model: str
    batch_size: int
    num_workers: int
    dtype: Literal["float32", "bfloat16", "float16"]
    device: str | None


@dataclass
class EvaluationArguments:
    """Which model, on which data, and how."""

    model: str = field(metadata={"help": "Checkpoint folder or Hub repository: clip_hf, CLIP or SigLIP."})
    data: str = field(
        metadata={"help": "Folder with metadata, .jsonl, .csv, .parquet or .tar files, or Hub data set as name:split."}
    )
    output_dir: Path = field(metadata={"help": "Folder of results.json and the images."})
    cache_dir: Path = field(
        default=Path("outputs/features"),
        metadata={"help": "Folder of features, which are computed once for the same model and contents."},
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of images; by default a usual name."})
    id_column: str | None = field(
        default=None, metadata={"help": "Column that names images; by default a usual name."}
    )
    limit: int | None = field(default=None, metadata={"help": "Only so many images, drawn evenly over the data."})
    batch_size: int = field(default=64, metadata={"help": "Images or texts at a time."})
    num_workers: int = field(default=2, metadata={"help": "Processes that decode images, for each process."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Precision of the weights; features are always compared in float64."}
    )
    device: str | None = field(default=None, metadata={"help": "Such as cpu or cuda:1; by default a GPU if there is."})

    def __post_init__(self) -> None:
        """Raises ValueError for a folder of a model, or a number that is too small; scripts have more of them."""
        if (self.output_dir / "config.json").is_file():
            raise ValueError(
                f"output_dir is {self.output_dir}, a model's folder, where results.json is of its training: write to "
                f"{self.output_dir / FOLDER / 'NAME'}, and the figures are on the model's page, too"
            )
        check_options(self)


def check_options(args: EmbedderArguments) -> None:
    """Raises ValueError for a number that is too small, or a device that cannot be used."""
    for name, least in LEAST.items():
        value = vars(args).get(name)
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}, but must be at least {least}")
    if args.device is not None:
        try:
            torch.empty(0, device=args.device)
        except (RuntimeError, AssertionError) as error:  # CUDA's own are several lines
            reason = str(error).partition("\n")[0]
            raise ValueError(f"device is {args.device}, which cannot be used: {reason}") from error


class _HelpFormatter(RawDescriptionHelpFormatter, ArgumentDefaultsHelpFormatter):
    """Leaves the lines of the description as they are, and says defaults where there are any."""

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def run(main: Callable[[Any], None], arguments: type[EmbedderArguments], description: str | None) -> None:
    """Calls a script's main with its arguments, together with the processes that a launcher started beside this one.

    Args:
        main: of the script.
        arguments: class of what it is given.
        description: of the script, for `--help`.

    Raises:
        SystemExit: there was a ValueError or OSError; its message is all that is shown.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names of files may be no UTF-8
    parser = HfArgumentParser(arguments, description=description, formatter_class=_HelpFormatter)
    try:
        args = parser.parse_args_into_dataclasses()
        if "RANK" in os.environ:
            dist.init_process_group("gloo")  # lists, names and counts go through it
        main(*args)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def open_features(args: EvaluationArguments) -> FeatureCache:
    """Returns the features of the model, which is loaded onto this process's device.

    Args:
        args: of the script.

    Raises:
        ValueError: as `open_embedder`.
    """
    return FeatureCache(open_embedder(args), args.cache_dir)


def open_embedder(args: EmbedderArguments, modalities: Sequence[Modality] = ("image", "text")) -> Embedder:
    """Returns the model, loaded onto this process's device, with what prepares its inputs.

    Args:
        args: of the script.
        modalities: what is to be embedded; what prepares the other inputs is not opened.

    Raises:
        ValueError: the checkpoint does not open, has no image and text tower, or its tokenizer is another model's.
    """
    device = args.device or (f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    try:
        model: PreTrainedModel = AutoModel.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
        image_processor = AutoImageProcessor.from_pretrained(args.model) if "image" in modalities else None
        if type(image_processor).__name__.startswith("CLIPImageProcessor"):
            # transformers crops some sizes a pixel beside where OpenAI does: a model would have other features here
            # than its copy in our layout.
            image_processor = ClipHfImageProcessor.from_pretrained(args.model)
        tokenizer = AutoTokenizer.from_pretrained(args.model) if "text" in modalities else None
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise ValueError(f"model is {args.model}, which does not open: {error}") from error
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise ValueError(f"model is {args.model}, a {type(model).__name__}, but must embed images and texts, as CLIP")
    vocab_size = model.config.get_text_config().vocab_size
    # Some vocabularies are rounded up. Without files of a tokenizer, transformers returns an empty one.
    if tokenizer is not None and not vocab_size / 2 < len(tokenizer) <= vocab_size:
        raise ValueError(
            f"model is {args.model}, whose tokenizer has {len(tokenizer):,} tokens, but the text tower "
            f"{vocab_size:,}: save the tokenizer it was trained with beside its weights"
        )
    return Embedder(model.to(device), image_processor, tokenizer, args.batch_size, args.num_workers)


class EvenlySpread:
    """Some samples of many, one drawn from each of as many equal parts: data may be sorted by class, or periodic.

    Args:
        samples: of which to take some.
        limit: how many; None for all.
    """

    def __init__(self, samples: Samples, limit: int | None) -> None:
        size = min(limit or len(samples), len(samples))
        generator = np.random.default_rng(0)
        ends = pairwise(part * len(samples) // size for part in range(size + 1))
        self.samples, self.places = samples, [int(generator.integers(*both)) for both in ends]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns a sample."""
        return self.samples[self.places[index]]

    def sample_id(self, index: int) -> str:
        """Returns the name of a sample."""
        return self.samples.sample_id(self.places[index])


def find_classes(source: Any, class_names: ClassNames | None, *, names_are_prompts: bool = True) -> Classes:
    """Returns the classes of all of a source, before an image of it is embedded.

    Args:
        source: `data.samples.Samples`.
        class_names: as of `Classes.find`.
        names_are_prompts: as of `Classes.find`.

    Raises:
        ValueError: as `Classes.find`; the message names the source.
    """
    try:
        return Classes.find(source.all_captions(), class_names, names_are_prompts=names_are_prompts)
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from error


def write_results(
    args: EvaluationArguments, task: str, cache: FeatureCache, images: ImageFeatures, results: dict[str, Any]
) -> None:
    """Writes results.json: what was evaluated, the results, and what could not be read.

    Args:
        args: of the script.
        task: its name on the Hub.
        cache: of the features.
        images: that were evaluated.
        results: numbers, by name.
    """
    described = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    facts = {
        "task": task,
        "arguments": described,
        "weights_digest": digest_weights(Path(args.model)),
        "weights": cache.model_facts["weights"],
        "versions": cache.model_facts["versions"],
    }
    written = without_credentials(facts | results | count_images(images))
    text = json.dumps(written, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(args.output_dir / "results.json", text)


def count_images(images: ImageFeatures) -> dict[str, Any]:
    """Returns how many images a figure is of and how many it is not of, and why."""
    counts: dict[str, Sequence[Any]] = {
        "num_images": images.ids,
        "num_broken": images.broken,
        "num_without_text": images.bare,
    }
    return {**{name: len(some) for name, some in counts.items()}, "broken": images.broken}


def describe_images(images: ImageFeatures) -> str:
    """Returns what stands beside a figure: how many images it is of, and how many could not be read or lack a text."""
    parts = [f"{len(images.ids):,} images"]
    if images.broken:
        parts.append(f"{len(images.broken):,} more could not be read, the first: {images.broken[0]['reason']}")
    if images.bare:
        parts.append(f"{len(images.bare):,} more have no caption or label, the first: {images.bare[0]}")
    return "; ".join(parts)


def describe_files(folder: Path, names: Sequence[str]) -> str:
    """Returns which files a script has written: there is no sheet of mistakes where there are none."""
    return f"{folder}: {', '.join(name for name in names if (folder / name).exists())}"


def is_writer() -> bool:
    """Whether this process is the one that prints and writes files."""
    return rank() == 0
