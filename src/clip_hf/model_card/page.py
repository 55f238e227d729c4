"""The page of a model, rendered from its facts: metadata that the Hub reads, and text for people."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.integrations import is_deepspeed_zero3_enabled

from clip_hf.model.configuration_clip_hf import ClipHfConfig
from clip_hf.model.modeling_clip_hf import ClipHfModel
from clip_hf.model_card.evaluations import LINEAR_PROBE, RETRIEVAL, ZERO_SHOT
from clip_hf.model_card.facts import ModelCardFacts

TEMPLATE = Path(__file__).with_name("page_template.md")
# In a page that this program has written.
GENERATED = "<!-- Made by clip_hf from "
# What transformers writes where it finds no page: its template, with nothing filled in but this.
EMPTY_DESCRIPTION = (
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been "
    "automatically generated."
)
TITLES = {ZERO_SHOT: "Zero-shot classification", RETRIEVAL: "Retrieval", LINEAR_PROBE: "Linear probe"}


def measure_sizes(config: ClipHfConfig) -> dict[str, dict[str, int]]:
    """Returns the parameters of each tower and of the whole model, and the FLOPs of one image and of one text.

    FLOPs are those of matrix products and convolutions, two for a multiplication and its addition, and for a text of
    full length. The model is built on the meta device: nothing is computed, and it takes no memory.

    Args:
        config: of the joint model.
    """
    if is_deepspeed_zero3_enabled():
        return {}  # every model would be divided among the processes as it is built, and this is one of them
    with torch.device("meta"), torch.no_grad():
        model = ClipHfModel(config).eval()
        vision = config.vision_config
        pixel_values = torch.empty(1, vision.num_channels, vision.image_size, vision.image_size)
        input_ids = torch.empty(1, config.text_config.max_position_embeddings, dtype=torch.long)
        with FlopCounterMode(display=False) as image_counter:
            model.vision_model(pixel_values=pixel_values)
        with FlopCounterMode(display=False) as text_counter:
            model.text_model(input_ids=input_ids)
    parts: dict[str, nn.Module] = {"image": model.vision_model, "text": model.text_model, "model": model}
    return {
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        "flops": {"image": image_counter.get_total_flops(), "text": text_counter.get_total_flops()},
    }


def render_card(facts: ModelCardFacts, made_from: str = "config.json, results.json and card.json") -> ModelCard:
    """Returns the page: metadata that the Hub reads, and text for people.

    Args:
        facts: of the model.
        made_from: the files that the facts were taken from.
    """
    config = facts.build_config()
    sizes = measure_sizes(config)
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag=ZERO_SHOT,
        license=facts.license,
        license_name=facts.license_name,
        license_link=facts.license_link,
        language=facts.language,
        base_model=facts.base_model,
        datasets=facts.datasets or None,
        tags=["clip", "clip_hf", RETRIEVAL, "image-feature-extraction", *facts.tags],
        widget=facts.widget or None,
        eval_results=_of_one_source(facts.evaluations) or None,
        model_name=facts.name if facts.evaluations else None,
    )
    tasks = dict.fromkeys(one.task_type for one in facts.evaluations)
    return ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        facts=facts,
        generated=f"{GENERATED}{made_from}: change it there, not here. -->",
        labels=json.dumps(facts.labels, ensure_ascii=False),
        cell=_cell,
        config=config,
        towers=_towers(config, sizes),
        num_parameters=sizes["parameters"]["model"] if sizes else None,
        results={TITLES.get(task, task): _results(facts.evaluations, task) for task in tasks},
    )


def is_by_hand(page: str) -> bool:
    """Returns whether somebody has written a page: neither this program, nor transformers, which fills nothing in."""
    empty = ModelCard.from_template(ModelCardData(), model_description=EMPTY_DESCRIPTION).text
    return GENERATED not in page and not page.rstrip().endswith(empty.strip())


def page_of_json(path: Path) -> str:
    """Returns the page of a file of facts, as `ModelCardFacts.from_json` reads them."""
    return str(render_card(ModelCardFacts.from_json(path), made_from=path.name))


def page_of_folder(folder: Path, model_id: str, **defaults: Any) -> str:
    """Returns README.md as the folder's facts give it; one that somebody has written by hand, as it is.

    Args:
        folder: of a saved model.
        model_id: what its users will give to `from_pretrained`.
        defaults: facts that card.json may replace.

    Raises:
        ValueError: card.json or the head of the README is not valid, or the README is not UTF-8.
    """
    page = folder / "README.md"
    try:
        text = page.read_text(encoding="utf-8") if page.is_file() else None
    except UnicodeDecodeError as error:
        raise ValueError(f"{page} is not UTF-8: {error}") from error
    if text is not None and is_by_hand(text):
        try:
            ModelCard(text)
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"the metadata at the head of {page} is not valid: {error}") from error
        return text
    return str(render_card(ModelCardFacts.from_folder(folder, model_id, **defaults)))


def _towers(config: ClipHfConfig, sizes: dict[str, dict[str, int]]) -> list[tuple[str, str, str]]:
    """The lines of a table of both towers: what, of the image tower, of the text tower."""
    vision, text = config.vision_config, config.text_config
    if vision.model_type == "clip_hf_resnet":
        tower = f"modified ResNet, width {vision.width}, stages of {', '.join(map(str, vision.depths))} blocks"
    else:
        tower = f"Vision {_transformer(vision)}, patches of {vision.patch_size} pixels"
    pixels = f"{vision.image_size} x {vision.image_size} pixels"
    tokens = f"up to {text.max_position_embeddings} tokens, from a vocabulary of {text.vocab_size:,}"
    measured = [
        (label, _with_prefix(sizes[name]["image"]), _with_prefix(sizes[name]["text"]))
        for name, label in (("parameters", "parameters"), ("flops", "FLOPs for one input"))
        if name in sizes
    ]
    return [("tower", tower, _transformer(text)), ("input", pixels, tokens), *measured]


def _transformer(tower: Any) -> str:
    numbers = {"layer": tower.num_hidden_layers, "head": tower.num_attention_heads}
    counted = ", ".join(f"{number} {what}{'s' if number > 1 else ''}" for what, number in numbers.items())
    return f"Transformer, width {tower.hidden_size}, {counted}"


def _with_prefix(number: int) -> str:
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {prefix}"
    return str(number)


def _of_one_source(evaluations: list[EvalResult]) -> list[EvalResult]:
    """The evaluations without a second one of a data set: metadata has one name and source for all its metrics."""
    first: dict[tuple, EvalResult] = {}
    return [one for one in evaluations if _line_of(first.setdefault(one.unique_identifier, one)) == _line_of(one)]


def _line_of(one: EvalResult) -> tuple[str, str]:
    """The data set and the source of a figure, as a table has them."""
    dataset = one.dataset_name + (f", {one.dataset_split}" if one.dataset_split else "")
    return dataset, f"[{one.source_name}]({one.source_url})" if one.source_name else ""


def _results(evaluations: Iterable[EvalResult], task: str) -> list[list[str]]:
    """The lines of a table, its head first: a line for each data set and source, a column for each metric."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for one in evaluations:
        if one.task_type == task:
            line = lines.setdefault(_line_of(one), {})
            line[one.metric_name or one.metric_type] = f"{one.metric_value:.1%}"
    columns = list(dict.fromkeys(column for line in lines.values() for column in line))
    table = [["data", *columns, "measured by"]]
    table += [[dataset, *(line.get(one, "") for one in columns), source] for (dataset, source), line in lines.items()]
    table = [[_cell(one) for one in line] for line in table]
    return table if any(source for _, source in lines) else [line[:-1] for line in table]


def _cell(text: str) -> str:
    """What stands in a table for a text of whatever characters."""
    return " ".join(text.split()).replace("|", "\\|")
