"""What is known of a model, from its configuration, its training, and whoever wrote something down.

A folder's facts are those of its config.json, of what training left there (results.json, curves.png), and of
card.json, an object with fields of `ModelCardFacts`, for people, evaluations and conversions.
"""

import json
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from huggingface_hub import EvalResult

from clip_hf.model.configuration_clip_hf import ClipHfConfig
from clip_hf.model_card.evaluations import RETRIEVAL, read_evaluations
from clip_hf.model_card.json_files import read_json

CARD_FILE = "card.json"
CURVES_FILE = "curves.png"
RESULTS_FILE = "results.json"
RECALL = re.compile(r"eval_(text|image)_retrieval_recall@(\d+)")


@dataclass
class ModelCardFacts:
    """What is known of a model. What is left empty leaves its line or section out of the page.

    Args:
        name: title of the page.
        model_id: what `from_pretrained` is given: a Hub repository, or a folder.
        architecture: the released architecture that the page is about, instead of a configuration.
        config: fields of the model's `ClipHfConfig`.
        summary: what the model is, in a sentence or two.
        training: lines of the table on training: name and value.
        num_pairs_seen: pairs of training, repetitions included.
        curves: name of the image of the training curves, a file beside the page.
        evaluation_set: `type` (a data set on the Hub, or the format of its files), `name` and perhaps `split` of the
            pairs that training evaluated on.
        evaluations: what was measured or published, values in [0, 1].
        conversion: lines of the table on the model's conversion: name and value.
        sources: checkpoints that convert into this model, by whose they are.
        has_code: whether the repository carries the code that `trust_remote_code` runs.
        formats: the formats beside ours that the repository holds: "transformers", "open_clip".
        labels: two or more classes that the model can tell apart, for the examples.
        widget: examples that the Hub offers, each with `src`, `candidate_labels` and `example_title`.
        intended_use: what the model is for.
        limits: what it is not good for, beside what follows from the other facts.
        citations: BibTeX entries beside that of CLIP.
        license: the Hub's name of it.
        language: of the texts.
        base_model: the model on the Hub that this one was made from.
        datasets: data sets on the Hub that it was trained on.
        tags: beside those of every page.
    """

    name: str
    model_id: str
    architecture: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: str | None = None
    training: dict[str, str] = field(default_factory=dict)
    num_pairs_seen: int | None = None
    curves: str | None = None
    evaluation_set: dict[str, str] = field(default_factory=dict)
    evaluations: list[EvalResult] = field(default_factory=list)
    conversion: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    has_code: bool = True
    formats: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=lambda: ["a dog", "a cat"])
    widget: list[dict[str, str]] = field(default_factory=list)
    intended_use: str | None = None
    limits: list[str] = field(default_factory=list)
    citations: list[str] = field(default_factory=list)
    license: str | None = None
    language: str | None = None
    base_model: str | None = None
    datasets: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)

    @classmethod
    def from_json(cls, path: Path, **defaults: Any) -> Self:
        """Returns the facts in a file.

        Args:
            path: a JSON object; evaluations are those of `huggingface_hub.EvalResult`.
            defaults: facts that the file may replace.

        Raises:
            ValueError: the file is not JSON, a name is not a fact, or an evaluation lacks something.
        """
        facts = read_json(path)
        known = [one.name for one in fields(cls)]
        if unknown := sorted(facts.keys() - set(known)):
            raise ValueError(f"{path} has {unknown}, which are no facts of a model card: those are {known}")
        try:
            evaluations = [EvalResult(**evaluation) for evaluation in facts.pop("evaluations", [])]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} has an evaluation that huggingface_hub.EvalResult refuses: {error}") from error
        return cls(**defaults | facts | {"evaluations": [*defaults.get("evaluations", []), *evaluations]})

    @classmethod
    def from_folder(cls, folder: Path, model_id: str, **defaults: Any) -> Self:
        """Returns what a model's folder says.

        Args:
            folder: of a saved model.
            model_id: what its users will give to `from_pretrained`.
            defaults: facts that card.json may replace.

        Raises:
            ValueError: as in `from_json`.
        """
        card_file, curves_file, results_file = (folder / name for name in (CARD_FILE, CURVES_FILE, RESULTS_FILE))
        known = read_json(card_file) if card_file.is_file() else {}
        facts: dict[str, Any] = {"name": model_id.rpartition("/")[2], "model_id": model_id}
        facts["config"] = ClipHfConfig.from_pretrained(folder).to_dict()
        if curves_file.is_file():
            facts["curves"] = CURVES_FILE
        if results_file.is_file():
            facts |= facts_of_training(read_json(results_file), known.get("evaluation_set", {}))
        if evaluations := read_evaluations(folder):
            facts["evaluations"] = [*facts.get("evaluations", []), *evaluations]
        return cls.from_json(card_file, **facts | defaults) if known else cls(**facts | defaults)

    def to_json(self, path: Path) -> None:
        """Writes the facts that are not empty."""
        facts = asdict(self)
        facts["evaluations"] = [_without_empty(evaluation) for evaluation in facts["evaluations"]]
        path.write_text(json.dumps(_without_empty(facts), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def build_config(self) -> ClipHfConfig:
        """Returns the configuration of the model that the page is about."""
        if self.architecture is not None:
            return ClipHfConfig.from_architecture(self.architecture)
        return ClipHfConfig.from_dict(self.config)


def _without_empty(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value not in (None, [], {})}


def facts_of_training(results: dict[str, Any], evaluation_set: dict[str, str]) -> dict[str, Any]:
    """Returns the facts in results.json: the table on training, the number of pairs, the last evaluation.

    Args:
        results: what training left.
        evaluation_set: see `ModelCardFacts`.
    """
    run, options = results["training"], results["arguments"]
    last: dict[str, float] = next((entry for entry in reversed(results["history"]) if "loss" in entry), {})
    lines = {
        "pairs seen": f"{run['num_pairs_seen']:,}",
        "steps": f"{run['steps']:,}, each of {run['batch_size']:,} pairs",
        "epochs": _number(run["epochs"]),
        "last loss": _number(last.get("loss")),
        "last scale of the logits": _number(last.get("scale")),
        "learning rate": f"{_number(options['learning_rate'])}, {options['lr_scheduler_type']}",
        "warm-up": _warmup(options["warmup_steps"]),
        "weight decay": _number(options["weight_decay"]),
        "optimizer": options["optim"],
        "precision": "bfloat16" if options["bf16"] else "float16" if options["fp16"] else "float32",
        "seed": _number(options["seed"]),
        "processes": f"{run['num_processes']} on {run['device']}",
        "time": _duration(run.get("train_runtime")),
        "versions": ", ".join(f"{name} {version}" for name, version in results["versions"].items() if version),
    }
    metrics = results["evaluation"] or {}
    recalls = [match for name in metrics if (match := RECALL.fullmatch(name))]
    evaluations = [
        EvalResult(
            task_type=RETRIEVAL,
            dataset_type=evaluation_set.get("type", "imagefolder"),
            dataset_name=evaluation_set.get("name", "evaluation set of the training"),
            dataset_split=evaluation_set.get("split"),
            metric_type=f"recall_at_{match[2]}",
            metric_name=f"{match[1]} R@{match[2]}",
            metric_value=round(metrics[match[0]], 4),
        )
        for match in recalls
    ]
    training = {name: value for name, value in lines.items() if value}
    return {"training": training, "num_pairs_seen": run["num_pairs_seen"], "evaluations": evaluations}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:,.0f} minutes"


def _warmup(steps: float) -> str:
    return f"{steps:.0%} of the steps" if 0 < steps < 1 else f"{steps:,.0f} steps"
