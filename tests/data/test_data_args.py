import pytest
from transformers import HfArgumentParser

from clip_hf.data.augmentation import Augmentation
from clip_hf.data.columns import Columns
from clip_hf.data.data_args import DataArguments
from tests.data.source_kinds import write_rows, write_source


def parse(*options) -> DataArguments:
    return HfArgumentParser(DataArguments).parse_args_into_dataclasses(list(options))[0]


def test_options_become_a_training_set(drawn, small_processor, tmp_path):
    rows = [{"photo": str(sample["file"]), "alt": "a cat"} for sample in drawn]
    files = [write_rows("jsonl", tmp_path / str(number), rows) for number in range(2)]
    args = parse(
        *("--train_data", *map(str, files), "--train_weights", "3", "1", "--eval_data", str(files[0])),
        *("--image_column", "photo", "--text_column", "alt", "--streaming", "true", "--stream_lanes", "4"),
        *("--stream_window", "8", "--crop_scale", "0.5", "1", "--flip_probability", "0.5"),
        *("--jitter_probability", "0.1", "--jitter", "0.1", "0.2", "0.3", "0.4", "--grayscale_probability", "0.2"),
        *("--max_broken_fraction", "0.5"),
    )
    assert args.columns == Columns("photo", "alt", None)
    assert args.augmentation == Augmentation((0.5, 1), 0.5, 0.1, (0.1, 0.2, 0.3, 0.4), 0.2)
    pairs = args.training_pairs(args.open_training_sources(), small_processor, 7, tmp_path / "out")
    assert len(pairs) == 80 and len(args.open_evaluation_source()) == 40
    expected = {"seed": 7, "num_samples": [40, 40], "weights": [0.75, 0.25], "stream": [4, 8]}
    assert pairs.fingerprint.items() >= expected.items()
    assert pairs.fingerprint["augmentation"]["jitter"] == [0.1, 0.2, 0.3, 0.4]
    assert [source["columns"] for source in pairs.fingerprint["sources"]] == 2 * [["photo", "alt", "photo"]]
    assert pairs.max_broken_fraction == 0.5 and pairs.broken_list == str(tmp_path / "out" / "broken_samples.jsonl")


def test_the_defaults_are_those_of_the_classes(drawn, small_processor, tmp_path):
    args = parse("--train_data", write_source("tar", tmp_path / "tar", drawn))
    assert args.augmentation == Augmentation() and args.columns == Columns() and args.dry_run_data is None
    assert args.open_evaluation_source() is None
    pairs = args.training_pairs(args.open_training_sources(), small_processor, 0, tmp_path)
    assert pairs.fingerprint["stream"] is None and pairs.weights is None and pairs.max_broken_fraction == 0.1
    dry = parse("--train_data", "shapes", "--dry_run_data", "5")
    assert dry.training_pairs(dry.open_training_sources(), small_processor, 0, tmp_path).broken_list is None


def test_a_training_that_evaluates_needs_something_to_evaluate_on():
    with pytest.raises(ValueError, match=r"eval_strategy is 'epoch', but .* give --eval_data, or --eval_strategy no"):
        parse("--train_data", "shapes").open_evaluation_source("epoch")
    assert parse("--train_data", "shapes", "--dry_run_data", "5").open_evaluation_source("epoch") is None
    assert len(parse("--train_data", "shapes", "--eval_data", "shapes").open_evaluation_source("epoch")) > 0


def test_a_recipe_may_give_one_source_as_a_string():
    assert DataArguments(train_data="shapes").train_data == ["shapes"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_weights": [1, 2]}, "train_weights has 2 numbers, but train_data 1 sources"),
        ({"max_broken_fraction": 10}, "max_broken_fraction is 10"),
        ({"dry_run_data": 0}, "dry_run_data is 0"),
        ({"crop_scale": [0.5]}, "crop_scale has 1 numbers"),
        ({"crop_scale": [0, 1]}, "crop_scale is"),
        ({"flip_probability": 2}, "flip_probability is 2"),
        ({"jitter": [0.1, 0.1, 0.1, 0.1]}, r"jitter is .*, but means nothing without jitter_probability"),
        ({"stream_lanes": 8}, "stream_lanes is 8, but means nothing without streaming"),
        ({"stream_window": 8}, "stream_window is 8, but means nothing without streaming"),
        ({"stream_lanes": 0, "streaming": True}, "stream_lanes is 0, but must be at least 1"),
        ({"stream_window": 0, "streaming": True}, "stream_window is 0, but must be at least 1"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(train_data=["shapes"], **options)


def test_a_source_is_named_once():
    """Its images would else meet themselves in a batch, and results.json count it once."""
    with pytest.raises(ValueError, match=r"train_data names a.csv 2 times.* with train_weights"):
        DataArguments(train_data=["a.csv", "b.csv", "a.csv"])
