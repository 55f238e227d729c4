"""scripts/evaluate_zero_shot.py on real files: what it writes, against ZeroShotClassifier and scikit-learn."""

import json
import shutil
import subprocess
import sys
import tarfile

import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from transformers import BertConfig, BertModel, CLIPImageProcessor

from clip_hf import ClipHfImageProcessor, ClipHfModel, ZeroShotClassifier
from clip_hf.model_card.evaluations import digest_weights
from tests.evaluation.tiny_evaluation import (
    COLOURS,
    MODELS,
    run_script,
    save_checkpoint,
    tiny_siglip_tokenizer,
    write_photos,
)
from tests.model.tiny_zero_shot import tiny_image_processor, tiny_tokenizer

SCRIPT = "scripts/evaluate_zero_shot.py"


@pytest.fixture
def photos(tmp_path):
    folder = write_photos(tmp_path / "photos", number=15)
    (folder / "04.png").write_bytes(b"no image")
    return folder


def evaluate(checkpoint, photos, tmp_path, *extra):
    common = ["--model", checkpoint, "--data", photos, "--output_dir", tmp_path / "out", "--num_workers", 0]
    run_script(SCRIPT, *common, "--cache_dir", tmp_path / "cache", *extra)
    return json.loads((tmp_path / "out" / "results.json").read_text())


@pytest.mark.parametrize("kind", ["clip_hf", "clip"])
def test_figures_equal_those_of_the_classifier(kind, photos, tmp_path, capsys):
    found = evaluate(save_checkpoint(kind, tmp_path / "model"), photos, tmp_path)
    model, names = MODELS[kind](), sorted(COLOURS)
    classifier = ZeroShotClassifier.from_class_names(model, tiny_tokenizer(), names, found["templates"])
    rows = [number for number in range(15) if number != 4]
    files = [str(photos / f"{number:02d}.png") for number in rows]
    pixels = tiny_image_processor(model)(files, return_tensors="pt")["pixel_values"]
    predicted = classifier(pixels).argmax(dim=1).tolist()
    labels = [names.index(list(COLOURS)[number % 3]) for number in rows]
    assert found["metrics"]["top_1_accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert found["metrics"]["mean_per_class_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found["class_names"] == names and [row["num_images"] for row in found["classes"]] == [5, 4, 5]
    assert found["task"] == "zero-shot-image-classification"
    assert found["weights_digest"] == digest_weights(tmp_path / "model")
    assert (found["num_images"], found["num_broken"], found["broken"][0]["id"]) == (14, 1, "04.png")
    printed = capsys.readouterr().out
    assert "14 images; 1 more could not be read, the first: 04.png" in printed
    assert f"{found['metrics']['top_1_accuracy']:.2%}" in printed
    for name in ("confusion.png", "mistakes.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 200


def test_a_model_scores_the_same_in_transformers_layout(photos, tmp_path):
    theirs = save_checkpoint("clip", tmp_path / "theirs")
    ours = save_checkpoint("clip_hf", tmp_path / "ours")
    ClipHfModel.from_pretrained(theirs).save_pretrained(ours)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**sizes).save_pretrained(theirs)
    ClipHfImageProcessor(**sizes).save_pretrained(ours)  # crops the photos of 44 by 40 pixels at another place
    of_ours, of_theirs = (evaluate(checkpoint, photos, tmp_path) for checkpoint in (ours, theirs))
    assert of_ours["classes"] == of_theirs["classes"]
    error = of_theirs["metrics"]["expected_calibration_error"]
    assert of_ours["metrics"]["expected_calibration_error"] == pytest.approx(error, abs=1e-6)


def test_siglip_averages_its_prompts(photos, tmp_path):
    templates = tmp_path / "templates.txt"
    templates.write_text("a photo of a {}.\n{}\n")
    checkpoint = save_checkpoint("siglip", tmp_path / "model")
    found = evaluate(checkpoint, photos, tmp_path, "--templates", templates)
    model, tokenizer, unit = MODELS["siglip"](), tiny_siglip_tokenizer(), torch.nn.functional.normalize
    with torch.no_grad():
        prompts = [prompt for name in sorted(COLOURS) for prompt in (f"a photo of a {name}.", name)]
        input_ids = tokenizer(prompts, padding="max_length", max_length=24, return_tensors="pt")["input_ids"]
        embeds = unit(model.get_text_features(input_ids).pooler_output, dim=1).unflatten(0, (3, 2)).mean(dim=1)
        files = [str(photos / f"{number:02d}.png") for number in range(15) if number != 4]
        pixels = tiny_image_processor(model)(files, return_tensors="pt")["pixel_values"]
        predicted = (model.get_image_features(pixels).pooler_output @ unit(embeds, dim=1).T).argmax(dim=1)
    labels = [sorted(COLOURS).index(list(COLOURS)[number % 3]) for number in range(15) if number != 4]
    assert found["metrics"]["top_1_accuracy"] == pytest.approx(accuracy_score(labels, predicted))


def test_names_from_a_file_make_the_prompts(photos, tmp_path):
    checkpoint = save_checkpoint("clip_hf", tmp_path / "model")
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"red": "dog", "green": "ox", "blue": "zebra"}))
    found = evaluate(checkpoint, photos, tmp_path, "--class_names", names, "--templates", "plain")
    assert found["class_names"] == ["dog", "ox", "zebra"]
    assert found["templates"] == ["a photo of a {}."]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--templates", "none"], "templates is 'none', but must be one of plain, general"),
        (["--class_names", "none.txt"], "class_names is none.txt, which is no file"),
        (["--label_column", "none"], "no column 'none'"),
        (["--label_column", "height"], "not one image has a label: they must be texts, or whole numbers"),
    ],
)
def test_mistakes_are_one_clear_line(extra, message, photos, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("red\ngreen\nblue\n")
    lines = [json.loads(line) for line in (photos / "metadata.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(line | {"height": 1.5}) + "\n" for line in lines)
    (photos / "metadata.jsonl").write_text(text)
    checkpoint = save_checkpoint("clip_hf", tmp_path / "model")
    with pytest.raises(SystemExit) as end:
        evaluate(checkpoint, photos, tmp_path, "--class_names", names, *extra)
    assert message in str(end.value)


def test_a_part_has_the_classes_of_the_whole(photos, tmp_path, capsys):
    """What is left of a class may be nothing: the others are still told from it."""
    for number in (1, 7, 10, 13):
        (photos / f"{number:02d}.png").write_bytes(b"no image")
    found = evaluate(save_checkpoint("clip_hf", tmp_path / "model"), photos, tmp_path)
    assert found["class_names"] == ["blue", "green", "red"] and found["classes_without_images"] == ["green"]
    assert [row["num_images"] for row in found["classes"]] == [5, 0, 5]
    assert found["metrics"]["mean_per_class_accuracy"] == pytest.approx(
        (found["classes"][0]["accuracy"] + found["classes"][2]["accuracy"]) / 2
    )
    assert "1 classes have none of these images, but may be predicted: green" in capsys.readouterr().out


def test_unlabelled_images_are_counted(photos, tmp_path):
    lines = [json.loads(line) for line in (photos / "metadata.jsonl").read_text().splitlines()]
    lines = [line | {"label": -1 if number in (2, 8) else line["label"]} for number, line in enumerate(lines)]
    (photos / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "names.txt").write_text("\n".join(COLOURS))
    options = ["--label_column", "label", "--class_names", tmp_path / "names.txt"]
    found = evaluate(save_checkpoint("clip_hf", tmp_path / "model"), photos, tmp_path, *options)
    assert (found["num_images"], found["num_broken"], found["num_without_text"]) == (12, 1, 2)
    assert [row["num_images"] for row in found["classes"]] == [5, 4, 3]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no tokenizer", "tokenizer has 2 tokens, but the text tower"),
        ("cut off", "which does not open: "),
        ("another model", "a BertModel, but must embed images and texts, as CLIP"),
    ],
)
def test_a_checkpoint_that_cannot_be_evaluated_takes_one_line(damage, message, photos, tmp_path):
    folder = save_checkpoint("clip", tmp_path / "model")
    if damage == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    elif damage == "cut off":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    else:
        sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        BertModel(BertConfig(hidden_size=32, **sizes)).save_pretrained(folder)
    with pytest.raises(SystemExit) as end:
        evaluate(folder, photos, tmp_path)
    assert str(end.value).startswith(f"evaluate_zero_shot.py: model is {folder}") and message in str(end.value)


def test_cifar_is_classified(test_data, tmp_path):
    found = evaluate(
        save_checkpoint("clip_hf", tmp_path / "model"), test_data / "cifar10" / "test", tmp_path, "--limit", 60
    )
    assert [row["num_images"] for row in found["classes"]] == [6] * 10


def test_a_checkpoint_that_is_not_there_takes_one_line(photos, tmp_path):
    with pytest.raises(SystemExit, match=r"evaluate_zero_shot\.py: .*nowhere"):
        evaluate(tmp_path / "nowhere", photos, tmp_path)


def test_labels_are_checked_before_anything_is_embedded(photos, tmp_path):
    (tmp_path / "names.txt").write_text("red\nblue\n", encoding="utf-8")
    checkpoint = save_checkpoint("clip_hf", tmp_path / "model")
    with pytest.raises(SystemExit, match="labels are none of 2 classes"):
        evaluate(checkpoint, photos, tmp_path, "--class_names", tmp_path / "names.txt")
    assert not list((tmp_path / "cache").glob("*"))


def write_tars(photos, folder):
    folder.mkdir()
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for number in range(15):
            (photos / "class").write_text(list(COLOURS)[number % 3])
            tar.add(photos / f"{number:02d}.png", f"{number:02d}.png")
            tar.add(photos / "class", f"{number:02d}.cls")
    return folder / "photos.tar", ["--label_column", "cls"]


def write_parquet(photos, folder):
    folder.mkdir()
    images = [(photos / f"{number:02d}.png").read_bytes() for number in range(15)]
    labels = [list(COLOURS)[number % 3] for number in range(15)]
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label_name": labels}), folder / "photos.parquet")
    return folder / "photos.parquet", []


def write_class_folders(photos, folder):
    for number in range(15):
        (place := folder / list(COLOURS)[number % 3]).mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / f"{number:02d}.png", place)
    return folder, ["--label_column", "label"]


@pytest.mark.parametrize("write", [write_tars, write_parquet, write_class_folders])
def test_every_kind_of_source_gives_the_same_table(write, photos, tmp_path):
    checkpoint = save_checkpoint("clip_hf", tmp_path / "model")
    plain = evaluate(checkpoint, photos, tmp_path)
    data, options = write(photos, tmp_path / "other")
    found = evaluate(checkpoint, data, tmp_path, *options)
    assert found["class_names"] == plain["class_names"] and found["num_broken"] == 1
    assert found["classes"] == plain["classes"]
    assert found["metrics"]["top_1_accuracy"] == plain["metrics"]["top_1_accuracy"]


def test_precision_and_device_are_those_asked_for(photos, tmp_path):
    checkpoint = save_checkpoint("clip_hf", tmp_path / "model")
    options = ["--dtype", "bfloat16", "--device", "cpu"]
    single, half = evaluate(checkpoint, photos, tmp_path), evaluate(checkpoint, photos, tmp_path, *options)
    assert half["weights"] != single["weights"] and half["arguments"]["dtype"] == "bfloat16"


@pytest.mark.slow
@pytest.mark.parametrize("script", ["zero_shot", "linear_probe"])
def test_two_processes_write_the_same_figures(script, photos, tmp_path):
    checkpoint, tables = save_checkpoint("clip_hf", tmp_path / "model"), []
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    data = ["--data", photos, *(["--train_data", photos, "--num_draws", "1"] if script == "linear_probe" else [])]
    for name, command in {"one": (sys.executable,), "two": launcher}.items():
        folders = ["--output_dir", tmp_path / name, "--cache_dir", tmp_path / name / "cache", "--num_workers", "0"]
        arguments = map(str, [f"scripts/evaluate_{script}.py", "--model", checkpoint, *data, *folders])
        run = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        tables.append(json.loads((tmp_path / name / "results.json").read_text()))
    assert tables[0]["classes"] == tables[1]["classes"] and tables[0]["broken"] == tables[1]["broken"]
    assert tables[0]["metrics"]["top_1_accuracy"] == tables[1]["metrics"]["top_1_accuracy"]
