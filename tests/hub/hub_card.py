"""Metadata of a repository's README: read from its YAML front matter and checked as the Hub checks it."""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
STRINGS = ("license_name", "license_link", "library_name", "pipeline_tag")
STRINGS_OR_LISTS = ("license", "language", "tags", "datasets", "metrics", "base_model")


@dataclass
class Card:
    """What a README says about its repository, and what is wrong with how it says it."""

    metadata: dict[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_card(content: str) -> Card:
    """Parses the front matter; invalid YAML, wrong types and a malformed `model-index` are errors."""
    block = FRONT_MATTER.match(content)
    if block is None:
        return Card(warnings=["empty or missing yaml metadata in repo card"])
    try:
        metadata = yaml.safe_load(block.group(1))
    except yaml.YAMLError as error:
        return Card(errors=[f"YAML: {error}"])
    if metadata is None:
        return Card(warnings=["empty or missing yaml metadata in repo card"])
    if not isinstance(metadata, dict):
        return Card(errors=[f"the metadata must be a mapping, not {type(metadata).__name__}"])
    return Card(metadata, [*_check_types(metadata), *_check_model_index(metadata.get("model-index", []))])


def _check_types(metadata: dict[str, Any]) -> list[str]:
    errors = [f'"{key}" must be a string' for key in STRINGS if not isinstance(metadata.get(key, ""), str)]
    for key in STRINGS_OR_LISTS:
        value = metadata.get(key, [])
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in items):
            errors.append(f'"{key}" must be a string or an array of strings')
    return errors


def _check_model_index(models: Any) -> list[str]:
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        return ['"model-index" must be an array of models']
    errors = [f'"model-index[{i}].name" is required' for i, model in enumerate(models) if not model.get("name")]
    for i, model in enumerate(models):
        for j, result in enumerate(model.get("results") or []):
            errors += [f'"model-index[{i}].results[{j}].{path}" is required' for path in _missing_in_result(result)]
    return errors


def _missing_in_result(result: dict[str, Any]) -> list[str]:
    required = [("task", "type"), ("dataset", "type"), ("dataset", "name")]
    missing = [f"{group}.{key}" for group, key in required if not (result.get(group) or {}).get(key)]
    metrics = result.get("metrics") or []
    missing += [] if metrics else ["metrics"]
    return missing + [f"metrics.{key}" for metric in metrics for key in ("type", "value") if metric.get(key) is None]
