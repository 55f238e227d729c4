"""The facts of a model card: read from folders and files, and written."""

import json
import re
from dataclasses import fields

import pytest
from huggingface_hub import EvalResult, ModelCard

from clip_hf import ClipTrainer, ClipTrainingArguments
from clip_hf.model_card.facts import ModelCardFacts
from clip_hf.model_card.page import render_card
from clip_hf.model_card.trainings import facts_of_training
from tests.hub.hub_card import check_card
from tests.hub.test_files import RESULTS
from tests.tiny_models import tiny_config, tiny_model
from tests.tiny_pairs import TinyPairs, collate

MINIMAL = {"name": "tiny", "model_id": "me/tiny", "config": tiny_config("vit").to_dict()}
MEASURED = EvalResult("zero-shot-image-classification", "me/shapes", "Shapes", "accuracy", 0.875, metric_name="top-1")


def test_a_training_fills_the_page(tmp_path):
    model = tiny_model("vit")
    model.config.name_or_path = "them/clip"
    options = {"max_steps": 2, "per_device_train_batch_size": 8, "eval_strategy": "steps", "eval_steps": 2}
    options |= {"logging_steps": 1, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "warmup_steps": 0}
    args = ClipTrainingArguments(str(tmp_path), learning_rate=2e-3, **options)
    pairs = TinyPairs(model.config, 16)
    pairs.repositories = ["them/pairs"]
    trainer = ClipTrainer(model, args, collate, pairs, TinyPairs(model.config, 6))
    trainer.train()
    trainer.save_model()
    facts = {"evaluation_set": {"type": "me/noise", "name": "Noise", "split": "test"}, "license": "mit"}
    (tmp_path / "card.json").write_text(json.dumps(facts))

    page = str(render_card(ModelCardFacts.from_folder(tmp_path, "me/noise-clip")))
    results = json.loads((tmp_path / "results.json").read_text())
    assert "# noise-clip\n" in page and str(tmp_path) not in page and "Training showed it" not in page
    for line in (
        "| pairs seen | 16 |",
        "| steps | 2, each of 8 pairs |",
        "| learning rate | 0.002, cosine |",
        "| warm-up | 0 steps |",
        f"| last loss | {results['history'][1]['loss']:.4g} |",
        "![Training curves](curves.png)",
    ):
        assert line in page, line
    found = {result.metric_name: result.metric_value for result in ModelCard(page).data.eval_results}
    assert len(found) == 6
    for side in ("text", "image"):
        for k in (1, 5, 10):
            expected = results["evaluation"][f"eval_{side}_retrieval_recall@{k}"]
            assert found[f"{side} R@{k}"] == pytest.approx(expected, abs=1e-4)
    metadata = check_card(page).metadata
    assert (metadata["base_model"], metadata["datasets"]) == ("them/clip", ["them/pairs"])
    assert metadata["model-index"][0]["results"][0]["dataset"] == facts["evaluation_set"]


def test_facts_survive_their_file(tmp_path):
    facts = ModelCardFacts(**MINIMAL, evaluations=[MEASURED], training={"steps": "3"}, has_code=False)
    facts.to_json(tmp_path / "facts.json")
    again = ModelCardFacts.from_json(tmp_path / "facts.json")
    assert str(render_card(again)) == str(render_card(facts))
    again.to_json(tmp_path / "again.json")
    written, rewritten = (json.loads((tmp_path / name).read_text()) for name in ("facts.json", "again.json"))
    assert written == rewritten
    assert "widget" not in written and written["has_code"] is False


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a JSON list"),
        ('{"licence": "mit"}', "licence: no such facts .*license"),
        ('{"evaluations": [{"task_type": "t"}]}', "EvalResult refuses"),
        ('{"evaluations": [{"task": "t"}]}', "EvalResult refuses"),
        ('{"limits": "Only red."}', r"limits is 'Only red.', but must be of type list\[str\]"),
        ('{"tags": "clip"}', "tags is 'clip'"),
        ('{"tags": [1]}', r"tags is \[1\]"),
        ('{"training": ["steps"]}', r"training is \['steps'\], but must be of type dict\[str, str\]"),
        ('{"training": {"steps": 3}}', "training is {'steps': 3}"),
        ('{"license": 1}', "license is 1, but must be of type str | None"),
        ('{"num_pairs_seen": "8"}', "num_pairs_seen is '8'"),
        (
            '{"evaluations": [{"task_type": "t", "dataset_type": "d", "dataset_name": "D", "metric_type": "accuracy",'
            ' "metric_value": 71.0}]}',
            "metric_value 71.0, but must have shares, between 0 and 1",
        ),
    ],
)
def test_facts_that_are_none_are_refused(text, problem, tmp_path):
    path = tmp_path / "card.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=problem) as error:
        ModelCardFacts.from_json(path, **MINIMAL)
    assert str(path) in str(error.value)


def test_results_of_something_else_are_named(tmp_path):
    tiny_model("vit").save_pretrained(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"task": "image-text-retrieval", "arguments": {}}))
    with pytest.raises(ValueError, match=r"results.json: it has no training, evaluation.* move it elsewhere"):
        ModelCardFacts.from_folder(tmp_path, "me/tiny")


def test_a_loss_that_rises_again_is_on_the_page():
    history = [{"step": step, "eval_loss": loss} for step, loss in ((10, 3.0), (20, 2.5), (30, 2.75))]
    results = RESULTS | {"history": history}
    line = "2.75 in the end, after 2.5 in step 20: it overfits from there on"
    assert facts_of_training(results, {})["training"]["loss of the evaluation set"] == line
    results["history"] = history[:2]
    assert facts_of_training(results, {})["training"]["loss of the evaluation set"] == "2.5 in the end"


def test_the_course_of_recall_is_on_the_page():
    history = [{"step": step, "eval_mean_recall": step / 10_000 + 0.01} for step in (0, 500, 1000, 2000)]
    training = facts_of_training(RESULTS | {"history": history}, {})["training"]
    assert (
        training["mean recall of the evaluation set"]
        == "1.0% before, 11.0% after 1,000 steps, 21.0% after 2,000 steps"
    )
    training = facts_of_training(RESULTS | {"history": history[1:2]}, {})["training"]
    assert training["mean recall of the evaluation set"] == "6.0% after 500 steps"
    assert "mean recall of the evaluation set" not in facts_of_training(RESULTS, {})["training"]


def test_the_zero_shot_figures_of_a_training_are_on_the_page():
    shares = {"top_1_accuracy": 0.51239, "top_5_accuracy": 0.75, "num_broken": 3.0}
    evaluation = {"eval_loss": 2.0} | {f"eval_zero_shot_{name}": share for name, share in shares.items()}
    found = facts_of_training(RESULTS | {"evaluation": evaluation}, {})["evaluations"]
    page = str(render_card(ModelCardFacts(**MINIMAL, evaluations=found)))
    assert "### Zero-shot classification\n\n| data | top-1 | top-5 |\n" in page
    assert "| zero-shot set of the training | 51.2% | 75.0% |" in page


def test_only_a_model_that_began_with_nothing_knows_no_more_than_its_pairs():
    for source, known in (("", {"num_pairs_seen": 8}), ("outputs/shapes", {})):
        facts = facts_of_training(RESULTS | {"model": {"_name_or_path": source}}, {})
        assert {name: facts[name] for name in ("num_pairs_seen",) if name in facts} == known
        assert facts["training"]["pairs seen"] == "8"
        page = str(render_card(ModelCardFacts(**MINIMAL, **known)))
        assert ("Training showed it 8 pairs of images and texts, repetitions included." in page) is bool(known)


def test_every_fact_is_explained():
    explained = re.findall(r"^        (\w+): ", ModelCardFacts.__doc__.partition("Raises:")[0], re.MULTILINE)
    assert explained == [one.name for one in fields(ModelCardFacts)]
