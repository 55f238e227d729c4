"""Trains a linear classifier on the features of a frozen image tower, as in the CLIP paper, and tests it.

The L2 penalty is chosen on a validation split; accuracy is that of the test split. Writes results.json, confusion.png,
mistakes.png and few_shot.png, the accuracy after 1, 2, 4, 8 and 16 training images of each class.

python scripts/evaluate_linear_probe.py --model me/my-clip --train_data a/train --data a/test --output_dir out
"""

from dataclasses import dataclass, field

import clip_hf  # noqa: F401  registers the model classes
from clip_hf.data.columns import Columns
from clip_hf.data.sources import open_source
from clip_hf.evaluation.class_names import read_class_names
from clip_hf.evaluation.classification import class_table, classification_metrics, confusion_matrix, describe_metrics
from clip_hf.evaluation.figures import draw_confusion, draw_few_shot, draw_mistakes
from clip_hf.evaluation.linear_probe import (
    Split,
    check_training,
    choose_penalty,
    few_shot_curve,
    fit,
    predict_with,
    split_off,
)
from clip_hf.evaluation.setup import (
    EvaluationArguments,
    EvenlySpread,
    count_images,
    describe_files,
    describe_images,
    find_classes,
    is_writer,
    open_features,
    run,
    write_results,
)
from clip_hf.model_card.evaluations import LINEAR_PROBE


@dataclass
class LinearProbeArguments(EvaluationArguments):
    """And what the classifier learns from; `data` is what it is tested on."""

    train_data: str = field(kw_only=True, metadata={"help": "Training images, as `data`."})
    validation_data: str | None = field(
        default=None, metadata={"help": "As `data`; by default a tenth of train_data."}
    )
    label_column: str = field(default="label_name", metadata={"help": "Column of the class of an image."})
    class_names: str | None = field(default=None, metadata={"help": "File of class names; by default the labels."})
    num_draws: int = field(default=3, metadata={"help": "Draws of few training images, of each number."})
    seed: int = field(default=0, metadata={"help": "Of the draws."})


def main(args: LinearProbeArguments) -> None:
    """Embeds, trains, tests, prints and draws."""
    class_names = None if args.class_names is None else read_class_names(args.class_names)
    columns = Columns(args.image_column, args.label_column, args.id_column)
    sources = {"test": args.data, "train": args.train_data, "validation": args.validation_data}
    opened = {name: open_source(one, columns, split="evaluation") for name, one in sources.items() if one is not None}
    classes = find_classes(opened["test"], class_names, names_are_prompts=False)
    for source in opened.values():  # the classes of all are those of the first
        find_classes(source, classes.names_of_labels, names_are_prompts=False)
    data = {name: EvenlySpread(source, args.limit) for name, source in opened.items()}
    cache = open_features(args)
    images, splits = {}, {}
    for name, samples in data.items():
        images[name] = cache.embed_images(samples, before_projection=True).with_texts(classes.holds)
        splits[name] = Split(images[name].features, classes.of(images[name].texts))
    if not is_writer():
        return
    train, validation, names = splits["train"], splits.get("validation"), classes.names
    check_training(train, names, args.train_data)
    if validation is None:
        train, validation = split_off(train, 0.1, args.seed, names)
    penalty, sweep = choose_penalty(train, validation)
    predictions = predict_with(fit(train + validation, penalty), splits["test"])
    labels, folder = splits["test"].labels, args.output_dir
    metrics = classification_metrics(predictions, labels, len(names))
    curve = few_shot_curve(train, validation, splits["test"], num_draws=args.num_draws, seed=args.seed)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"metrics": metrics, "classes": class_table(predictions, labels, len(names)), "class_names": names}
    facts |= {"splits": {name: count_images(some) for name, some in images.items()}}
    facts |= {"penalty": penalty, "validation_accuracy_of_penalties": sweep, "few_shot": curve}
    write_results(args, LINEAR_PROBE, cache, images["test"], facts)
    for name, some in images.items():
        print(f"{name:12}{sources[name]}: {describe_images(some)}")
    print(f"\npenalty {penalty:.3g}, the best of {len(sweep)} on the validation split\n")
    print(describe_metrics(metrics))
    for point in curve:
        print(f"{point['shots']:>3} images of each class{'':5}{point['mean_accuracy']:>9.2%}")
    title = f"linear probe, top-1 {metrics['top_1_accuracy']:.1%}"
    draw_confusion(folder / "confusion.png", title, confusion_matrix(predictions, labels, len(names)), names)
    draw_mistakes(folder / "mistakes.png", data["test"], images["test"], predictions, labels, names)
    draw_few_shot(folder / "few_shot.png", title, curve, metrics["top_1_accuracy"], 1 / len(names))
    print(f"\n{describe_files(folder, ('results.json', 'confusion.png', 'mistakes.png', 'few_shot.png'))}")


if __name__ == "__main__":
    run(main, LinearProbeArguments, __doc__)
