"""scripts/evaluate_linear_probe.py on real files: colours are easy to tell from the features of any image tower."""

import json

import pytest
from PIL import Image

from tests.evaluation.tiny_evaluation import run_script, save_checkpoint, write_photos

SCRIPT = "scripts/evaluate_linear_probe.py"


def evaluate(checkpoint, folder, *extra):
    common = ["--model", checkpoint, "--output_dir", folder / "out", "--cache_dir", folder / "cache"]
    run_script(SCRIPT, *common, "--num_workers", 0, "--num_draws", 1, *extra)
    return json.loads((folder / "out" / "results.json").read_text())


@pytest.mark.parametrize("kind", ["clip_hf_resnet", "siglip"])
def test_classes_that_are_easy_to_tell_are_told(kind, tmp_path, capsys):
    train, test = write_photos(tmp_path / "train", number=24), write_photos(tmp_path / "test", number=9, size=44)
    found = evaluate(save_checkpoint(kind, tmp_path / "model"), tmp_path, "--train_data", train, "--data", test)
    assert found["metrics"]["top_1_accuracy"] == 1
    assert found["num_images"] == 9 and len(found["validation_accuracy_of_penalties"]) >= 7
    assert [point["shots"] for point in found["few_shot"]] == [1, 2, 4]
    assert "top 1 accuracy" in capsys.readouterr().out
    for name in ("confusion.png", "few_shot.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 200
    assert not (tmp_path / "out" / "mistakes.png").exists()


def test_validation_data_takes_the_place_of_a_part(tmp_path):
    train, test = write_photos(tmp_path / "train", number=12), write_photos(tmp_path / "test", number=9)
    data = ["--train_data", train, "--data", test, "--validation_data", test]
    found = evaluate(save_checkpoint("clip_hf", tmp_path / "model"), tmp_path, *data)
    assert [point["shots"] for point in found["few_shot"]] == [1, 2, 4]  # four of each class: none was split off


@pytest.mark.parametrize(
    ("number", "extra", "message"),
    [
        (2, [], "train: 1 of 3 classes have no image, the first: blue"),
        (12, ["--limit", "2"], "train: 1 of 3 classes have no image to learn from, the first: "),
    ],
)
def test_a_class_that_training_lacks_is_named(number, extra, message, tmp_path):
    train, test = write_photos(tmp_path / "train", number=number), write_photos(tmp_path / "test", number=9)
    data = ["--train_data", train, "--data", test, *extra]
    with pytest.raises(SystemExit, match=message):
        evaluate(save_checkpoint("clip_hf", tmp_path / "model"), tmp_path, *data)


def test_labels_may_be_numbers_and_broken_images_are_counted(tmp_path):
    train, test = write_photos(tmp_path / "train", number=24), write_photos(tmp_path / "test", number=9)
    (train / "05.png").write_bytes(b"no image")
    data = ["--train_data", train, "--data", test, "--label_column", "label"]
    found = evaluate(save_checkpoint("clip_hf", tmp_path / "model"), tmp_path, *data)
    assert found["class_names"] == ["0", "1", "2"] and found["metrics"]["top_1_accuracy"] == 1
    assert (found["splits"]["train"]["num_images"], found["splits"]["train"]["num_broken"]) == (23, 1)
