"""Metadata of model cards: what the test Hub accepts and what it refuses."""

import re

import pytest

from tests.hub.hub_card import check_card


@pytest.mark.parametrize(
    ("front_matter", "problem"),
    [
        ("license: mit\ntags:\n- clip", None),
        ("tags: [clip", "YAML"),
        ("a: b: c", "YAML"),
        ("- a\n- b", "must be a mapping"),
        ("datasets:\n- null", '"datasets" must be'),
        ("license: 3", '"license" must be'),
        ("pipeline_tag: [a]", '"pipeline_tag" must be a string'),
        ("model-index: clip", '"model-index" must be an array'),
        ("model-index:\n- results: []", r"model-index\[0\].name"),
        ("model-index:\n- name: a\n  results:\n  - task: {type: t}\n    metrics: [{type: m}]", "dataset.name.* value"),
        (
            "model-index:\n- name: a\n  results:\n  - task: {type: t}\n    dataset: {type: d, name: d}\n"
            "    metrics: [{type: m, value: 0.0}]",
            None,
        ),
    ],
)
def test_card_metadata(front_matter: str, problem: str | None):
    card = check_card(f"---\n{front_matter}\n---\n# Title\n---\n")
    if problem is None:
        assert not card.errors and card.metadata
    else:
        assert re.search(problem, " ".join(card.errors).replace("metrics.value", " value"))
