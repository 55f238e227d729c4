"""The facts of a model card: read from folders and files, and written."""

import json
import re
from dataclasses import fields

import pytest
from huggingface_hub import EvalResult, ModelCard

from clip_hf import ClipTrainer, ClipTrainingArguments
from clip_hf.model_card.facts import ModelCardFacts
from clip_hf.model_card.page import render_card
from tests.hub.hub_card import check_card
from tests.tiny_models import tiny_config, tiny_model
from tests.tiny_pairs import TinyPairs, collate

MINIMAL = {"name": "tiny", "model_id": "me/tiny", "config": tiny_config("vit").to_dict()}
MEASURED = EvalResult("zero-shot-image-classification", "me/shapes", "Shapes", "accuracy", 0.875, metric_name="top-1")


def test_a_training_fills_the_page(tmp_path):
    model = tiny_model("vit")
    options = {"max_steps": 2, "per_device_train_batch_size": 8, "eval_strategy": "steps", "eval_steps": 2}
    options |= {"logging_steps": 1, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "warmup_steps": 0}
    args = ClipTrainingArguments(str(tmp_path), learning_rate=2e-3, **options)
    trainer = ClipTrainer(model, args, collate, TinyPairs(model.config, 16), TinyPairs(model.config, 6))
    trainer.train()
    trainer.save_model()
    facts = {"evaluation_set": {"type": "me/noise", "name": "Noise", "split": "test"}, "license": "mit"}
    (tmp_path / "card.json").write_text(json.dumps(facts))

    page = str(render_card(ModelCardFacts.from_folder(tmp_path, "me/noise-clip")))
    results = json.loads((tmp_path / "results.json").read_text())
    assert "# noise-clip\n" in page and str(tmp_path) not in page
    for line in (
        "| pairs seen | 16 |",
        "| steps | 2, each of 8 pairs |",
        "| learning rate | 0.002, cosine |",
        "| warm-up | 0 steps |",
        f"| last loss | {results['history'][1]['loss']:.4g} |",
        "Training showed it 16 pairs",
        "![Training curves](curves.png)",
    ):
        assert line in page, line
    found = {result.metric_name: result.metric_value for result in ModelCard(page).data.eval_results}
    assert len(found) == 6
    for side in ("text", "image"):
        for k in (1, 5, 10):
            expected = results["evaluation"][f"eval_{side}_retrieval_recall@{k}"]
            assert found[f"{side} R@{k}"] == pytest.approx(expected, abs=1e-4)
    assert check_card(page).metadata["model-index"][0]["results"][0]["dataset"] == facts["evaluation_set"]


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
        ('{"licence": "mit"}', r"\['licence'\].*'license'"),
        ('{"evaluations": [{"task_type": "t"}]}', "EvalResult refuses"),
        ('{"evaluations": [{"task": "t"}]}', "EvalResult refuses"),
    ],
)
def test_facts_that_are_none_are_refused(text, problem, tmp_path):
    path = tmp_path / "card.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=problem) as error:
        ModelCardFacts.from_json(path, **MINIMAL)
    assert str(path) in str(error.value)


def test_every_fact_is_explained():
    explained = re.findall(r"^        (\w+): ", ModelCardFacts.__doc__, re.MULTILINE)
    assert explained == [one.name for one in fields(ModelCardFacts)]
