"""What a training would read, without training: speed, sizes, captions, broken samples, and a sheet of images."""

import importlib.util
import os
import textwrap
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.utils import logging

from clip_hf.data.training_pairs import BROKEN_SAMPLE_ERRORS, TrainingPairs

logger = logging.get_logger(__name__)

_NUM_SIZES = 200
_SHEET = (4, 6)


def dry_run(
    pairs: TrainingPairs,
    num_samples: int,
    output_dir: str | os.PathLike[str],
    batch_size: int,
    num_workers: int = 0,
) -> dict[str, Any]:
    """Returns a report on the first samples of a training, and draws some of them as the model will see them.

    Where the data does not fill a batch of the training, smaller ones are read, and the log says what to change.
    Without matplotlib the report says how to get the sheet, and has all else.

    Args:
        pairs: the training set.
        num_samples: how many to read.
        output_dir: gets `samples.png`.
        batch_size: pairs of the training in a step.
        num_workers: processes that prepare samples.

    Raises:
        TooManyBrokenSamplesError: too many samples are broken.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if batch_size > pairs.largest_batch:
        logger.warning(
            f"The data does not fill a batch of {batch_size:,}, as a training must: lower global_batch_size to at "
            f"most {pairs.largest_batch:,}"
        )
    # Half: where samples are broken, others take their places, and no image comes twice in a batch.
    loader = pairs.loader(min(batch_size, max(1, pairs.largest_batch // 2)), num_workers=num_workers)
    tokenizer = pairs.processor.tokenizer
    shown: list[tuple[np.ndarray, str]] = []
    lengths: list[int] = []
    start = time.perf_counter()
    while len(lengths) < num_samples:
        for batch in loader:
            for pixels, row in zip(batch["pixel_values"], batch["input_ids"].tolist(), strict=True):
                lengths.append(row.index(tokenizer.eos_token_id) + 1)
                if len(shown) < _SHEET[0] * _SHEET[1]:
                    text = tokenizer.decode(row, skip_special_tokens=True)
                    shown.append((pixels.permute(1, 2, 0).numpy().copy(), text))
            if len(lengths) >= num_samples:
                break
    seconds = time.perf_counter() - start
    names = loader.broken.source_names
    longest = tokenizer.model_max_length
    return {
        "samples_per_second": round(len(lengths) / seconds, 1),
        "samples": len(lengths),
        "samples_in_an_epoch": len(pairs),
        "batches_in_an_epoch": len(pairs) // batch_size,
        "workers": num_workers,
        "image_shorter_side": _quantiles(_shorter_sides(pairs, min(num_samples, _NUM_SIZES))),
        "caption_tokens": _quantiles(lengths),
        "captions_of_full_length": round(sum(length >= longest for length in lengths) / len(lengths), 4),
        "broken": dict(zip(names, loader.broken.num_broken, strict=True)),
        "read": dict(zip(names, loader.broken.num_read, strict=True)),
        "sheet": _draw_sheet(shown, folder / "samples.png"),
    }


def _shorter_sides(pairs: TrainingPairs, num_samples: int) -> list[int]:
    """Pixels of the shorter sides of the first images, as their files hold them."""
    sides = []
    for position in range(num_samples):
        number, index, place = pairs.locate(0, position)
        try:
            image = pairs.sources[number].draw(index, pairs.seed, place.epoch).image
            image = Image.open(BytesIO(image)) if isinstance(image, bytes) else image
        except BROKEN_SAMPLE_ERRORS:
            continue
        with image:
            sides.append(min(image.size))
    return sides


def _quantiles(values: Sequence[int]) -> dict[str, float]:
    """The least, the quartiles and the greatest of some numbers."""
    names = ("least", "25%", "median", "75%", "greatest")
    return dict(zip(names, np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist(), strict=True)) if values else {}


def _draw_sheet(shown: Sequence[tuple[np.ndarray, str]], path: Path) -> str:
    """Draws the sheet and returns where it is, or why it is not."""
    if importlib.util.find_spec("matplotlib") is None:
        return "not drawn: run `pip install matplotlib`"
    from matplotlib.figure import Figure

    rows, columns = _SHEET
    figure = Figure(figsize=(2.6 * columns, 3.1 * rows), layout="constrained")
    for axes in (all_axes := figure.subplots(rows, columns)).flat:
        axes.axis("off")
    for axes, (pixels, text) in zip(all_axes.flat, shown, strict=False):
        axes.imshow(pixels)
        axes.set_title(textwrap.fill(text.replace("$", r"\$"), 40), fontsize=7)
    figure.savefig(path, dpi=100)
    return str(path)
