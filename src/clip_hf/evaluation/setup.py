"""What the scripts of evaluation share: their options, the model, the features, results.json."""

import json
import os
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, HfArgumentParser, PreTrainedModel

from clip_hf.distributed import rank
from clip_hf.evaluation.class_names import ClassNames, number_classes
from clip_hf.evaluation.embedding import Embedder
from clip_hf.evaluation.features import FeatureCache, ImageFeatures, Samples
from clip_hf.model.image_processing_clip_hf import ClipHfImageProcessor
from clip_hf.model_card.evaluations import digest_weights

LEAST = {"limit": 1, "batch_size": 1, "num_workers": 0, "num_queries": 1, "num_draws": 1}


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
    limit: int | None = field(default=None, metadata={"help": "Only so many images, evenly spread over the data."})
    batch_size: int = field(default=64, metadata={"help": "Images or texts at a time."})
    num_workers: int = field(default=2, metadata={"help": "Processes that decode images, for each process."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Precision of the weights; features are always compared in float64."}
    )
    device: str | None = field(default=None, metadata={"help": "Such as cpu or cuda:1; by default a GPU if there is."})

    def __post_init__(self) -> None:
        """Raises ValueError for a number that is too small; scripts have more of them."""
        for name, least in LEAST.items():
            value = vars(self).get(name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, but must be at least {least}")


class _HelpFormatter(RawDescriptionHelpFormatter, ArgumentDefaultsHelpFormatter):
    """Leaves the lines of the description as they are, and says defaults where there are any."""

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def run(main: Callable[[Any], None], arguments: type[EvaluationArguments], description: str | None) -> None:
    """Calls a script's main with its arguments, together with the processes that a launcher started beside this one.

    Args:
        main: of the script.
        arguments: class of what it is given.
        description: of the script, for `--help`.

    Raises:
        SystemExit: there was a ValueError or OSError; its message is all that is shown.
    """
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
    """Returns the features of the model, which is loaded onto this process's device."""
    device = args.device or (f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    model: PreTrainedModel = AutoModel.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).to(device)
    image_processor = AutoImageProcessor.from_pretrained(args.model)
    if type(image_processor).__name__.startswith("CLIPImageProcessor"):
        # transformers crops some sizes a pixel beside where OpenAI does: a model would score another figure here than
        # its copy in transformers' layout.
        image_processor = ClipHfImageProcessor.from_pretrained(args.model)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    return FeatureCache(Embedder(model, image_processor, tokenizer, args.batch_size, args.num_workers), args.cache_dir)


class EvenlySpread:
    """Some samples of many, at equal distances: data sets are often sorted by class.

    Args:
        samples: of which to take some.
        limit: how many; None for all.
    """

    def __init__(self, samples: Samples, limit: int | None) -> None:
        self.samples, self.size = samples, min(limit or len(samples), len(samples))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns a sample."""
        return self.samples[index * len(self.samples) // self.size]

    def sample_id(self, index: int) -> str:
        """Returns the name of a sample."""
        return self.samples.sample_id(index * len(self.samples) // self.size)


def check_labels(source: Any, args: Any, class_names: ClassNames | None) -> None:
    """Finds mistakes in the labels of a source before an image of it is embedded.

    Args:
        source: `data.samples.Samples`.
        args: of the script. Under a limit, nothing is checked: the labels are then few.
        class_names: as of `number_classes`.

    Raises:
        ValueError: as `number_classes`.
    """
    if args.limit is None:
        number_classes(list(source.all_captions()), class_names)


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
        "num_images": len(images.ids),
        "num_broken": len(images.broken),
    }
    text = json.dumps(facts | results | {"broken": images.broken}, indent=2, ensure_ascii=False) + "\n"
    (args.output_dir / "results.json").write_text(text, encoding="utf-8")


def describe_broken(images: ImageFeatures) -> str:
    """Returns what stands beside a figure: how many images it is of, and how many could not be read."""
    if not images.broken:
        return f"{len(images.ids):,} images"
    number, first = len(images.broken), images.broken[0]["reason"]
    return f"{len(images.ids):,} images; {number:,} more could not be read, the first: {first}"


def is_writer() -> bool:
    """Whether this process is the one that prints and writes files."""
    return rank() == 0
