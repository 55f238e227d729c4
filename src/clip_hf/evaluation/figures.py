"""Images of results: what a model finds, what it mistakes, and how much it learns from few examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from clip_hf.evaluation.classification import Predictions
from clip_hf.evaluation.features import ImageFeatures, Samples
from clip_hf.evaluation.retrieval import most_similar
from clip_hf.model.image_decoding_clip_hf import decode_image

RIGHT, WRONG, MISSED, PLAIN = "green", "firebrick", "blue", "black"
MARKS = {RIGHT: "right", WRONG: "wrong", MISSED: "missed"}
MAX_NAMED_CLASSES = 60
MAX_NUMBERED_CLASSES = 20
CHARACTERS_PER_LINE = 44
NUM_ANSWERS = 5
NUM_MISTAKES, MISTAKES_PER_ROW = 18, 6


class Caption(NamedTuple):
    """A line below or beside an image.

    Args:
        text: shortened where it is long.
        colour: of matplotlib.
    """

    text: str
    colour: str = PLAIN


class Picture(NamedTuple):
    """An image with lines below it.

    Args:
        image: path, bytes or PIL image.
        captions: the lines, from above.
    """

    image: Any
    captions: Sequence[Caption]


def draw_sheet(path: Path, title: str, rows: Sequence[tuple[str, Sequence[Picture]]]) -> None:
    """Draws pictures in rows.

    Args:
        path: the image to write.
        title: of the sheet.
        rows: a heading, which may be empty, and pictures.
    """
    columns = max(len(row) for _, row in rows)
    heights = [2.9 + 0.15 * max(len(picture.captions) for picture in row) for _, row in rows]
    figure = Figure(figsize=(2.7 * columns, sum(heights) + 0.5), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.axis("off")
    for (heading, pictures), row_of_axes in zip(rows, grid, strict=True):
        row_of_axes[0].set_title(heading, loc="left", fontsize=9, parse_math=False)
        for picture, axes in zip(pictures, row_of_axes, strict=False):
            image = decode_image(picture.image).copy()
            image.thumbnail((320, 320))
            axes.imshow(image)
            axes.set_anchor("N")
            _write_below(axes, picture.captions)
    figure.savefig(path, dpi=110)


def draw_named(
    path: Path, title: str, images: Sequence[Any], answers: Sequence[Sequence[dict[str, Any]]], names: Sequence[str]
) -> None:
    """Draws images with their three best answers, the right one in green.

    Args:
        path: the image to write.
        title: of the sheet.
        images: N paths, bytes or PIL images.
        answers: of each image "score" and "label", as the zero-shot pipeline returns them, the best first.
        names: the right one of each image.
    """
    pictures = []
    for image, answer, name in zip(images, answers, names, strict=False):
        colours = [RIGHT if one["label"] == name else WRONG for one in answer[:3]]
        texts = [f"{one['score']:.0%} {one['label']}" for one in answer[:3]]
        pictures.append(Picture(image, [Caption(*line) for line in zip(texts, colours, strict=True)]))
    draw_sheet(path, title, [("", pictures[start : start + 5]) for start in range(0, len(pictures), 5)])


def draw_answers(path: Path, samples: Samples, images: ImageFeatures, texts: Tensor, num_queries: int) -> None:
    """Draws some images with the texts that they find, and some texts with the images that they find.

    Args:
        path: the image to write.
        samples: holds the images.
        images: (I, D) features of the images, and their texts.
        texts: (T, D) features of all texts, in the order of the images.
        num_queries: how many of each, evenly spread.
    """
    captions = [(text, row) for row, captions in enumerate(images.texts) for text in captions]
    shown = []
    queries = _evenly_spread(len(images.ids), num_queries)
    values, answers = most_similar(images.features[queries], texts, NUM_ANSWERS)
    for row, scores, found in zip(queries, values, answers.tolist(), strict=True):
        lines = [
            Caption(f"{score:.3f} {captions[answer][0]}", RIGHT if captions[answer][1] == row else WRONG)
            for score, answer in zip(scores, found, strict=True)
        ]
        own = [number for number, (_, owner) in enumerate(captions) if owner == row]
        if not set(own) & set(found):  # the best of what it should have found
            score, best = (column[0, 0] for column in most_similar(images.features[[row]], texts[own], 1))
            lines.append(Caption(f"{score:.3f} {captions[own[best]][0]}", MISSED))
        shown.append(Picture(samples[images.places[row]]["image"], lines))
    rows = [("Images, and the texts that they find", shown)]
    queries = _evenly_spread(len(captions), num_queries)
    values, answers = most_similar(texts[queries], images.features, NUM_ANSWERS)
    for query, scores, found in zip(queries, values.tolist(), answers.tolist(), strict=True):
        text, row = captions[query]
        marked = [
            (answer, score, RIGHT if answer == row else WRONG) for answer, score in zip(found, scores, strict=True)
        ]
        if row not in found:
            marked.append((row, float(texts[query].double() @ images.features[row].double()), MISSED))
        pictures = [
            Picture(samples[images.places[answer]]["image"], [Caption(f"{score:.3f} {MARKS[colour]}", colour)])
            for answer, score, colour in marked
        ]
        rows.append((text, pictures))
    title = (
        f"The {NUM_ANSWERS} best answers to some queries, with their similarities: green right, red wrong, blue missed"
    )
    draw_sheet(path, title, rows)


def _evenly_spread(number: int, most: int) -> list[int]:
    return [index * number // min(most, number) for index in range(min(most, number))]


def _write_below(axes: Axes, captions: Sequence[Caption]) -> None:
    for line, caption in enumerate(captions):
        text = caption.text if len(caption.text) <= CHARACTERS_PER_LINE else f"{caption.text[:CHARACTERS_PER_LINE]}..."
        # Not read as a formula, whatever dollar signs a caption has.
        axes.annotate(
            text,
            (0, 0),
            xycoords="axes fraction",
            xytext=(0, -4 - 10 * line),
            textcoords="offset points",
            va="top",
            fontsize=6.5,
            color=caption.colour,
            parse_math=False,
        )


def draw_confusion(path: Path, title: str, confusion: np.ndarray, class_names: Sequence[str]) -> None:
    """Draws the share of each class's images that were taken for each class.

    Args:
        path: the image to write.
        title: of the picture.
        confusion: (C, C) numbers of images, row for the right class, column for the predicted one.
        class_names: C names.
    """
    num_classes = len(class_names)
    shares = confusion / confusion.sum(axis=1, keepdims=True).clip(min=1)  # a class may have no images
    side = min(3.5 + 0.45 * num_classes, 16)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set(title=title, xlabel="predicted", ylabel="right")
    figure.colorbar(shown, label="share of the class's images", shrink=0.8)
    if num_classes <= MAX_NAMED_CLASSES:
        places = range(num_classes)
        axes.set_xticks(places, class_names, rotation=90 if num_classes > 8 else 30, parse_math=False)
        axes.set_yticks(places, class_names, parse_math=False)
    if num_classes <= MAX_NUMBERED_CLASSES:
        for (row, column), number in np.ndenumerate(confusion):
            colour = "white" if shares[row, column] > 0.5 else "black"
            if number:
                axes.text(column, row, f"{number}", ha="center", va="center", fontsize=7, color=colour)
    figure.savefig(path, dpi=110)


def draw_few_shot(path: Path, title: str, curve: Sequence[dict[str, Any]], full: float, chance: float) -> None:
    """Draws accuracy over the number of training images of each class.

    Args:
        path: the image to write.
        title: of the picture.
        curve: `shots`, `mean_accuracy` and `accuracies`, one a draw, of each point.
        full: accuracy after training on all images.
        chance: accuracy of guessing.
    """
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    shots = [point["shots"] for point in curve]
    axes.plot(shots, [point["mean_accuracy"] for point in curve], marker="o", label="mean of the draws")
    for point in curve:
        axes.plot([point["shots"]] * len(point["accuracies"]), point["accuracies"], ".", color="grey", markersize=4)
    axes.axhline(full, color="green", linestyle="--", label=f"all training images: {full:.1%}")
    axes.axhline(chance, color="grey", linestyle=":", label=f"chance: {chance:.1%}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(shots, [str(number) for number in shots])
    axes.set(title=title, xlabel="training images of each class", ylabel="accuracy", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def draw_mistakes(
    path: Path,
    samples: Samples,
    images: ImageFeatures,
    predictions: Predictions,
    labels: Tensor,
    class_names: Sequence[str],
) -> None:
    """Draws the wrong predictions that the model is surest of.

    Args:
        path: the image to write.
        samples: holds the images.
        images: N that were classified.
        predictions: of them.
        labels: (N,) their right classes.
        class_names: C names.
    """
    wrong = (predictions.classes != labels).nonzero().flatten()
    worst = wrong[predictions.confidences[wrong].argsort(descending=True, stable=True)][:NUM_MISTAKES].tolist()
    if not worst:
        path.unlink(missing_ok=True)  # of a former run
        return
    pictures = [
        Picture(
            samples[images.places[row]]["image"],
            [
                Caption(f"{predictions.confidences[row]:.0%} {class_names[int(predictions.classes[row])]}", WRONG),
                Caption(class_names[int(labels[row])], RIGHT),
            ],
        )
        for row in worst
    ]
    rows = [("", pictures[start : start + MISTAKES_PER_ROW]) for start in range(0, len(pictures), MISTAKES_PER_ROW)]
    draw_sheet(
        path, f"The surest of {len(wrong):,} mistakes among {len(labels):,} images; below, the right class", rows
    )
