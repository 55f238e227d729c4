"""What is known of a model, from its configuration, its training, and whoever wrote something down.

A folder's facts are those of its config.json, of what training left there (results.json, curves.png), and of
card.json, an object with fields of `ModelCardFacts`, for people, evaluations and conversions.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Self, get_args, get_origin

from huggingface_hub import EvalResult

from clip_hf.model.configuration_clip_hf import ClipHfConfig
from clip_hf.model_card.evaluations import read_evaluations, without_repetitions
from clip_hf.model_card.json_files import read_json
from clip_hf.model_card.trainings import evaluation_sources, facts_of_training

CARD_FILE = "card.json"
CURVES_FILE = "curves.png"
RESULTS_FILE = "results.json"
# Facts by the names that transformers' `push_to_hub` and `create_model_card` have for them.
THEIR_NAMES = {"model_name": "name", "finetuned_from": "base_model", "dataset": "datasets"}


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
        num_pairs_seen: all pairs that the model has seen, repetitions included; not of one that was trained further.
        curves: name of the image of the training curves, a file beside the page.
        evaluation_set: `type` (a data set on the Hub, or the format of its files), `name` and perhaps `split` of the
            pairs that training evaluated on.
        evaluations: what was measured or published, values in [0, 1].
        conversion: lines of the table on the model's conversion: name and value.
        original: address of the .pt file that OpenAI released, behind a folder named by its SHA-256.
        sources: checkpoints that convert into this model, by whose they are.
        has_code: whether the repository carries the code that `trust_remote_code` runs.
        formats: the formats beside ours that the repository holds: "transformers", "open_clip".
        labels: two or more classes that the model can tell apart, for the examples.
        widget: examples that the Hub offers, each with `src`, `candidate_labels` and `example_title`.
        intended_use: what the model is for.
        limits: what it is not good for, beside what follows from the other facts.
        citations: BibTeX entries beside that of CLIP.
        license: the Hub's name of it; "other" for one that `license_name` names and `license_link` shows.
        license_name: of a license that the Hub does not know.
        license_link: its address, or the name of a file beside the page.
        language: of the texts.
        base_model: the model on the Hub that this one was made from.
        datasets: data sets on the Hub that it was trained on.
        tags: beside those of every page.

    Raises:
        ValueError: a fact is of another type, a license is not to be found, or a value of an evaluation is not in
            [0, 1].
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
    original: str | None = None
    sources: dict[str, str] = field(default_factory=dict)
    has_code: bool = True
    formats: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=lambda: ["a dog", "a cat"])
    widget: list[dict[str, str]] = field(default_factory=list)
    intended_use: str | None = None
    limits: list[str] = field(default_factory=list)
    citations: list[str] = field(default_factory=list)
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: str | None = None
    base_model: str | None = None
    datasets: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Checks what a file or a caller gave."""
        for one in fields(self):
            if not _is_of(getattr(self, one.name), one.type):
                wanted = one.type.__name__ if isinstance(one.type, type) else one.type
                raise ValueError(f"{one.name} is {getattr(self, one.name)!r}, but must be of type {wanted}")
        if self.license == "other" and not (self.license_name and self.license_link):
            raise ValueError(
                "license is 'other', which needs license_name and license_link: add both, or leave it out"
            )
        for evaluation in self.evaluations:
            value = evaluation.metric_value
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"evaluations has a metric_value {value!r}, but must have shares, between 0 and 1")

    @classmethod
    def from_json(cls, path: Path, **defaults: Any) -> Self:
        """Returns the facts in a file.

        Args:
            path: a JSON object; evaluations are those of `huggingface_hub.EvalResult`.
            defaults: facts that the file may replace.

        Raises:
            ValueError: the file is not JSON, a name is not a fact, a fact is of another type, or an evaluation lacks
                something.
        """
        facts = read_json(path)
        try:
            require_facts(facts)
            evaluations = [EvalResult(**evaluation) for evaluation in facts.pop("evaluations", [])]
        except TypeError as error:
            raise ValueError(f"{path}: huggingface_hub.EvalResult refuses an evaluation: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        try:
            return cls(**defaults | facts | {"evaluations": [*defaults.get("evaluations", []), *evaluations]})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

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
        facts: dict[str, Any] = {"name": model_id.rpartition("/")[2], "model_id": model_id}
        facts["config"] = ClipHfConfig.from_pretrained(folder).to_dict()
        if curves_file.is_file():
            facts["curves"] = CURVES_FILE
        evaluations = read_evaluations(folder)
        if results_file.is_file():
            evaluation_set = cls._with_card(card_file, facts | defaults).evaluation_set
            try:
                results = read_json(results_file)
                facts |= facts_of_training(results, evaluation_set)
            except ValueError as error:
                raise ValueError(f"{results_file}: {error}") from error
            sources, is_named = evaluation_sources(results), "name" in evaluation_set
            evaluations = without_repetitions(facts["evaluations"], evaluations, sources, is_named)
        facts["evaluations"] = evaluations
        return cls._with_card(card_file, facts | defaults)

    @classmethod
    def _with_card(cls, card_file: Path, facts: dict[str, Any]) -> Self:
        return cls.from_json(card_file, **facts) if card_file.is_file() else cls(**facts)

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


def require_facts(names: Iterable[str]) -> None:
    """Raises ValueError for names that are no facts."""
    known = [one.name for one in fields(ModelCardFacts)]
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"{', '.join(unknown)}: no such facts of a model card; those are {', '.join(known)}")


def facts_of_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns facts that were given to `push_to_hub`: under transformers' names, too, and one text as a list of one.

    Args:
        options: by name; None says nothing.

    Raises:
        ValueError: a name is not a fact.
    """
    facts = {THEIR_NAMES.get(name, name): value for name, value in options.items() if value is not None}
    require_facts(facts)
    lists = {one.name for one in fields(ModelCardFacts) if get_origin(one.type) is list}
    return {name: [value] if isinstance(value, str) and name in lists else value for name, value in facts.items()}


def _is_of(value: Any, wanted: Any) -> bool:
    """Whether a value, and what it holds, is of a type as fields have them."""
    kind, parts = get_origin(wanted), get_args(wanted)
    if kind is UnionType:
        return any(_is_of(value, part) for part in parts)
    if kind is list:
        return isinstance(value, list) and all(_is_of(item, parts[0]) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(_is_of(item, parts[1]) for item in value.values())
    return wanted is Any or isinstance(value, wanted)


def _without_empty(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value not in (None, [], {})}
