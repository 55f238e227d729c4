"""Classifies images by the names of their classes: accuracies with 95 % intervals, a table of classes, calibration.

Writes results.json, confusion.png and mistakes.png. Templates are a set (plain, general) or a file with one a line, {}
where the name goes. Class names are those of the data, or a file: a name a line in the order of the labels, or a JSON
object with the name of each label.

python scripts/evaluate_zero_shot.py --model outputs/model --data photos --output_dir outputs/zero_shot
torchrun --nproc_per_node 8 scripts/evaluate_zero_shot.py --model me/clip --data me/photos:test --output_dir out
"""

from dataclasses import dataclass, field
from typing import Any

import clip_hf  # noqa: F401  registers the model classes
from clip_hf.data.columns import Columns
from clip_hf.data.sources import open_source
from clip_hf.evaluation.class_names import read_class_names
from clip_hf.evaluation.classification import class_table, classification_metrics, confusion_matrix, describe_metrics
from clip_hf.evaluation.figures import draw_confusion, draw_mistakes
from clip_hf.evaluation.setup import (
    EvaluationArguments,
    EvenlySpread,
    describe_files,
    describe_images,
    find_classes,
    is_writer,
    open_features,
    run,
    write_results,
)
from clip_hf.evaluation.templates import load_templates
from clip_hf.evaluation.zero_shot import class_weights, classify, scale_of
from clip_hf.model_card.evaluations import ZERO_SHOT


@dataclass
class ZeroShotArguments(EvaluationArguments):
    """And of the classes."""

    label_column: str = field(default="label_name", metadata={"help": "Column of an image's class, such as label."})
    class_names: str | None = field(default=None, metadata={"help": "File of class names; by default the labels."})
    templates: str = field(default="general", metadata={"help": "plain, general, or a file of templates."})


def print_tables(metrics: dict[str, Any], classes: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    """Prints the metrics, and a line a class."""
    print(describe_metrics(metrics))
    width = min(40, max(map(len, names)) + 2)
    print(f"\n{'class':{width}}{'images':>8}{'right':>9}   95 % interval      taken for")
    for row in classes:
        if not row["num_images"]:
            print(f"{names[row['class']]:{width}}{0:>8}")
            continue
        taken_for = "" if row["taken_for"] is None else names[row["taken_for"]]
        interval = f"{row['low']:>7.1%} to {row['high']:>6.1%}"
        print(f"{names[row['class']]:{width}}{row['num_images']:>8,}{row['accuracy']:>9.1%}  {interval}  {taken_for}")


def main(args: ZeroShotArguments) -> None:
    """Embeds, classifies, prints and draws."""
    templates = load_templates(args.templates)
    class_names = None if args.class_names is None else read_class_names(args.class_names)
    columns = Columns(args.image_column, args.label_column, args.id_column)
    source = open_source(args.data, columns, split="evaluation")
    classes, samples = find_classes(source, class_names), EvenlySpread(source, args.limit)
    names = classes.names
    cache = open_features(args)
    images = cache.embed_images(samples).with_texts(classes.holds)
    labels = classes.of(images.texts)
    weights = class_weights(cache, names, templates)
    predictions = classify(images.features, weights, scale_of(cache.embedder.model), labels)
    metrics = classification_metrics(predictions, labels, len(names))
    table, absent = class_table(predictions, labels, len(names)), classes.missing(labels.tolist())
    if is_writer():
        folder = args.output_dir
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"class_names": names, "templates": templates, "metrics": metrics, "classes": table}
        write_results(args, ZERO_SHOT, cache, images, facts | {"classes_without_images": absent})
        print(f"{args.data}: {describe_images(images)}; {len(names)} classes, {len(templates)} templates")
        if absent:
            print(f"{len(absent)} classes have none of these images, but may be predicted: {', '.join(absent[:10])}")
        print()
        print_tables(metrics, table, names)
        confusion = confusion_matrix(predictions, labels, len(names))
        draw_confusion(folder / "confusion.png", f"top-1 {metrics['top_1_accuracy']:.1%}", confusion, names)
        draw_mistakes(folder / "mistakes.png", samples, images, predictions, labels, names)
        print(f"\n{describe_files(folder, ('results.json', 'confusion.png', 'mistakes.png'))}")


if __name__ == "__main__":
    run(main, ZeroShotArguments, __doc__)
