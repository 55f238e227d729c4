"""Evaluation during training: all captions, and classes by their names, the same on any number of processes."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from clip_hf import (
    ClipHfConfig,
    ClipHfImageProcessor,
    ClipHfModel,
    ClipHfProcessor,
    ClipHfTokenizer,
    ZeroShotClassifier,
)
from clip_hf.data.collator import ImageTextCollator, ImageTextPairs
from clip_hf.data.sources import open_source
from clip_hf.evaluation.classification import classification_metrics, predict
from clip_hf.training import ClipTrainer, ClipTrainingArguments
from clip_hf.training.zero_shot import ZeroShotArguments
from tests.ranks import run_on_ranks
from tests.tiny_models import TEXT, VISION

CLASSES = ["red", "green", "blue"]
NUM_IMAGES = 11  # which two processes cannot share equally


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of noise, each with a class and one to three captions."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(NUM_IMAGES):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
        captions = [" ".join(rng.choice(CLASSES, 4)) for _ in range(1 + number % 3)]
        rows.append({"file_name": f"{number:02}.png", "captions": captions, "label_name": CLASSES[number % 3]})
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    return folder


def make_trainer(folder, output_dir, **options):
    tokenizer = ClipHfTokenizer.train(CLASSES * 4, vocab_size=540, context_length=16)
    config = ClipHfConfig(
        text_config=TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 16},
        vision_config=VISION["vit"],
        projection_dim=32,
    )
    torch.manual_seed(0)
    model, size = ClipHfModel(config), config.vision_config.image_size
    processor = ClipHfProcessor(ClipHfImageProcessor(size=size, crop_size=size), tokenizer)
    args = ClipTrainingArguments(
        str(output_dir), use_cpu=True, per_device_eval_batch_size=3, report_to="none", disable_tqdm=True, **options
    )
    pairs = ImageTextPairs(open_source(folder), processor, "evaluation")
    trainer = ClipTrainer(model, args, ImageTextCollator(processor), pairs, pairs, processor)
    arguments = ZeroShotArguments(zero_shot_data=str(folder), zero_shot_templates="plain")
    trainer.evaluate_also(arguments.open(processor, args.eval_batch_size))
    return trainer


def test_of_several_evaluation_sets_the_first_brings_the_classification(folder, tmp_path):
    trainer = make_trainer(folder, tmp_path)
    trainer.eval_dataset = {"a": trainer.eval_dataset, "b": trainer.eval_dataset}
    metrics = trainer.evaluate()
    assert "eval_zero_shot_top_1_accuracy" in metrics and "eval_a_mean_recall" in metrics
    assert not any(name.startswith("eval_b_zero_shot") for name in metrics)


def evaluate(folder, output_dir):
    """What a process reports."""
    if dist.is_initialized():
        names = ("RANK", "LOCAL_RANK")
        os.environ |= dict.fromkeys(names, str(dist.get_rank())) | {"WORLD_SIZE": str(dist.get_world_size())}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    metrics = make_trainer(folder, output_dir).evaluate()
    return {name: value for name, value in metrics.items() if "recall" in name or "rank" in name or "accur" in name}


@pytest.fixture(scope="module")
def metrics(folder, tmp_path_factory):
    return evaluate(folder, tmp_path_factory.mktemp("one"))


def test_two_processes_report_what_one_does(folder, metrics, tmp_path):
    for found in run_on_ranks(evaluate, 2, folder, tmp_path):
        assert found == pytest.approx(metrics, abs=1e-6)


def test_all_captions_are_right_answers(folder, metrics, tmp_path):
    trainer = make_trainer(folder, tmp_path)
    processor, model = trainer.processing_class, trainer.model.eval()
    samples = [trainer.eval_dataset[index] for index in range(NUM_IMAGES)]
    texts = [text for sample in samples for text in sample["texts"]]
    owner = np.repeat(np.arange(NUM_IMAGES), [len(sample["texts"]) for sample in samples])
    assert len(texts) > NUM_IMAGES
    with torch.no_grad():
        output = model(
            pixel_values=torch.stack([sample["pixel_values"] for sample in samples]),
            input_ids=processor.tokenizer(texts, padding=True, return_tensors="pt")["input_ids"],
        )
    similarities = (output.image_embeds.double() @ output.text_embeds.double().T).numpy()
    own = similarities[owner, np.arange(len(texts))]
    found_images = (similarities > own).sum(axis=0)
    best = np.array([own[owner == image].max() for image in range(NUM_IMAGES)])
    found_texts = (similarities > best[:, None]).sum(axis=1)
    for k in (1, 5):
        assert metrics[f"eval_image_retrieval_recall@{k}"] == pytest.approx((found_images < k).mean())
        assert metrics[f"eval_text_retrieval_recall@{k}"] == pytest.approx((found_texts < k).mean())


def test_classes_are_those_that_the_classifier_finds(folder, metrics, tmp_path):
    trainer = make_trainer(folder, tmp_path)
    processor, model = trainer.processing_class, trainer.model.eval()
    classifier = ZeroShotClassifier.from_class_names(model, processor.tokenizer, sorted(CLASSES))
    pixels = torch.stack([trainer.eval_dataset[index]["pixel_values"] for index in range(NUM_IMAGES)])
    labels = torch.tensor([sorted(CLASSES).index(CLASSES[index % 3]) for index in range(NUM_IMAGES)])
    expected = classification_metrics(predict(classifier(pixels), labels), labels, 3)
    assert metrics["eval_zero_shot_top_1_accuracy"] == pytest.approx(expected["top_1_accuracy"])
    assert metrics["eval_zero_shot_mean_per_class_accuracy"] == pytest.approx(expected["mean_per_class_accuracy"])


def test_broken_images_are_counted_and_the_others_classified(folder, tmp_path):
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for place, missing in ((whole, (1, 10)), (damaged, ())):
        shutil.copytree(folder, place)
        kept = [line for number, line in enumerate(lines) if number not in missing]
        (place / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    for name in ("01.png", "10.png"):
        (damaged / name).write_bytes(b"no image")
    options = {"zero_shot_templates": "plain"}
    trainer = make_trainer(whole, tmp_path / "one")
    expected = ZeroShotArguments(zero_shot_data=str(whole), **options).open(trainer.processing_class, 3)
    found = ZeroShotArguments(zero_shot_data=str(damaged), **options).open(trainer.processing_class, 3, 1)
    model = trainer.model.eval()
    assert expected(model)["num_broken"] == 0
    assert found(model) == pytest.approx(expected(model) | {"num_broken": 2})


def test_images_of_another_column_are_found(folder, tmp_path):
    lines = (folder / "metadata.jsonl").read_text().replace('"file_name"', '"photo"')
    (tmp_path / "photos.jsonl").write_text(lines.replace('"photo": "', f'"photo": "{folder}/'), encoding="utf-8")
    arguments = ZeroShotArguments(zero_shot_data=str(tmp_path / "photos.jsonl"), zero_shot_templates="plain")
    trainer = make_trainer(folder, tmp_path)
    with pytest.raises(ValueError, match="column of images"):
        arguments.open(trainer.processing_class, 3)
    found = arguments.open(trainer.processing_class, 3, image_column="photo")
    assert found(trainer.model.eval())["num_broken"] == 0


def test_the_best_checkpoint_can_be_that_of_the_accuracy(folder, tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    options |= {"per_device_train_batch_size": 4, "warmup_steps": 0, "load_best_model_at_end": True}
    trainer = make_trainer(folder, tmp_path, metric_for_best_model="zero_shot_top_1_accuracy", **options)
    trainer.train_dataset = [
        {**trainer.eval_dataset[index], "texts": trainer.eval_dataset[index]["texts"][:1]} for index in range(8)
    ]
    trainer.train()
    accuracies = [e["eval_zero_shot_top_1_accuracy"] for e in trainer.state.log_history if "eval_loss" in e]
    assert len(accuracies) == 3 and trainer.state.best_metric == max(accuracies)


def test_mistakes_are_named_before_anything_is_embedded(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="zero_shot_class_names is given, but no images"):
        ZeroShotArguments(zero_shot_class_names="names.txt")
    with pytest.raises(ValueError, match="templates is 'fancy'"):
        ZeroShotArguments(zero_shot_data=str(folder), zero_shot_templates="fancy")
    trainer = make_trainer(folder, tmp_path)
    with pytest.raises(ValueError, match="no column 'kind'"):
        ZeroShotArguments(zero_shot_data=str(folder), zero_shot_label_column="kind").open(trainer.processing_class, 4)
    (tmp_path / "names.txt").write_text("red\ngreen\n", encoding="utf-8")
    arguments = ZeroShotArguments(zero_shot_data=str(folder), zero_shot_class_names=str(tmp_path / "names.txt"))
    with pytest.raises(ValueError, match="labels are none of 2 classes"):
        arguments.open(trainer.processing_class, 4)
    monkeypatch.setattr("clip_hf.training.combinations.divides_parameters", lambda args: True)
    with pytest.raises(ValueError, match="needs the whole model"):
        trainer.evaluate_also(trainer._zero_shot)
