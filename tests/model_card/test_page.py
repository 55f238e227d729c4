"""Model cards: facts in, a page out that the Hub accepts and that says nothing it does not know."""

import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard

from clip_hf import ClipHfConfig
from clip_hf.conversion.released import RELEASED
from clip_hf.model_card.facts import ModelCardFacts
from clip_hf.model_card.page import measure_sizes, page_of_json, render_card
from tests.hub.hub_card import check_card
from tests.tiny_models import tiny_config

ROOT = Path(__file__).parents[2]
CARDS = sorted((ROOT / "model_cards").glob("*.json"))

# GFLOPs of the image and the text tower as OpenCLIP publishes them (docs/model_profile.csv), image tower and text side
# in millions of parameters. Its ResNets ask with every position of the attention pool, ours with the mean alone.
PUBLISHED_SIZES = {
    "RN50": (12.22, 5.96, 38.32, 63.69),
    "RN101": (19.54, 5.96, 56.26, 63.43),
    "RN50x4": (42.56, 9.27, 87.14, 91.16),
    "RN50x16": (149.39, 13.3, 167.33, 123.65),
    "RN50x64": (529.11, 23.55, 420.38, 202.88),
    "ViT-B/32": (8.82, 5.96, 87.85, 63.43),
    "ViT-B/16": (35.13, 5.96, 86.19, 63.43),
    "ViT-L/14": (162.03, 13.3, 303.97, 123.65),
    "ViT-L/14@336px": (381.92, 13.3, 304.29, 123.65),
}

MINIMAL = {"name": "tiny", "model_id": "me/tiny", "config": tiny_config("vit").to_dict()}
MEASURED = EvalResult("zero-shot-image-classification", "me/shapes", "Shapes", "accuracy", 0.875, metric_name="top-1")
SECTIONS = {
    "## Get it": {"sources": {"OpenCLIP": "them/clip"}, "original": "https://example.org/0123/tiny.pt"},
    "From a copy on the Hub": {"sources": {"OpenCLIP": "them/clip"}},
    "## Results": {"evaluations": [MEASURED]},
    "## Training": {"training": {"steps": "3"}},
    "## Conversion": {"conversion": {"source": "them/clip"}},
    "## Intended use": {"intended_use": "Sorting of shapes."},
    "![Training curves](curves.png)": {"training": {"steps": "3"}, "curves": "curves.png"},
    'subfolder="transformers"': {"formats": ["transformers"]},
    "import open_clip": {"formats": ["open_clip"]},
    "Sees no red.": {"limits": ["Sees no red."]},
    "@misc{mine}": {"citations": ["@misc{mine}"]},
    "A model of shapes.": {"summary": "A model of shapes."},
    "1,234 pairs": {"num_pairs_seen": 1234},
}


def render(**facts) -> str:
    return str(render_card(ModelCardFacts(**MINIMAL | facts)))


def metadata(page: str) -> dict:
    card = check_card(page)
    assert not card.errors and not card.warnings
    return card.metadata


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_every_card_is_what_its_facts_give(path):
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    assert page == page_of_json(path), "run `make card`"
    assert f"Made by clip_hf from {path.name}:" in page
    assert metadata(page).get("license") == ("mit" if json.loads(path.read_text()).get("architecture") else None)


@pytest.mark.parametrize("name", RELEASED)
def test_cards_say_where_the_released_files_are(name):
    (facts,) = [facts for path in CARDS if (facts := ModelCardFacts.from_json(path)).architecture == name]
    released = RELEASED[name]
    assert (facts.original, *facts.sources.values()) == (released.url, *released.copies)
    assert facts.base_model == released.copies[0] and facts.summary
    assert released.sha256 in str(render_card(facts))


def test_every_released_architecture_has_its_card():
    assert {json.loads(path.read_text()).get("architecture") for path in CARDS} >= PUBLISHED_SIZES.keys()
    assert {path.stem for path in (ROOT / "model_cards").glob("*.md")} == {path.stem for path in CARDS}


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_sizes_are_those_published(name):
    config = ClipHfConfig.from_architecture(name)
    image_gflops, text_gflops, *parameters = PUBLISHED_SIZES[name]
    if config.vision_config.model_type == "clip_hf_resnet":
        width, num_positions = 32 * config.vision_config.width, (config.vision_config.image_size // 32) ** 2 + 1
        per_query = width * width + width * config.projection_dim + 2 * num_positions * width
        image_gflops -= 2 * (num_positions - 1) * per_query / 1e9
        # Keys and values of every token are as published; ours map the one query, and each head's mean.
        heads = config.vision_config.num_attention_heads
        image_gflops -= 4 * ((num_positions - 1) * width - (heads - 1) * num_positions) * width / 1e9
    sizes = measure_sizes(config)
    assert sizes["flops"]["image"] / 1e9 == pytest.approx(image_gflops, rel=2e-3)
    assert sizes["flops"]["text"] / 1e9 == pytest.approx(text_gflops, rel=2e-3)
    # The text side as published has the temperature, one number, in it.
    measured = [sizes["parameters"][tower] / 1e6 for tower in ("image", "text")]
    assert measured == pytest.approx(parameters, abs=0.006)
    assert sizes["parameters"]["model"] == sizes["parameters"]["image"] + sizes["parameters"]["text"] + 1


@pytest.mark.parametrize(("num", "counted"), [(1, "1 layer, 1 head |"), (2, "2 layers, 2 heads |")])
def test_one_is_not_several(num, counted):
    text_config = MINIMAL["config"]["text_config"] | {"num_hidden_layers": num, "num_attention_heads": num}
    page = render(config=MINIMAL["config"] | {"text_config": text_config})
    assert f"3 heads, patches of 8 pixels | Transformer, width 64, {counted}" in page


def test_a_page_without_facts_has_no_empty_sections():
    page = render()
    assert not [mark for mark in SECTIONS if mark in page]
    assert [line for line in page.splitlines() if line.startswith("#")] == [
        *("# tiny", "## Use it", "## Limits", "## Citation"),
    ]
    assert "None" not in page and not re.search(r"\n\n\n|\{\{|\{%", page)
    assert metadata(page).keys() == {"library_name", "pipeline_tag", "tags"}


@pytest.mark.parametrize("mark", SECTIONS)
def test_each_fact_has_its_place(mark):
    page = render(**SECTIONS[mark])
    assert page.count(mark) == 1
    assert not re.search(r"\n\n\n|None", page)


def test_metadata_is_what_the_hub_reads():
    facts = {
        **{"license": "mit", "language": "en", "base_model": "openai/clip-vit-base-patch32", "datasets": ["me/data"]},
        **{"widget": [{"src": "https://example.org/a.png", "candidate_labels": "a, b"}], "tags": ["shapes"]},
    }
    found = metadata(render(**facts, evaluations=[MEASURED]))
    assert found["pipeline_tag"] == "zero-shot-image-classification" and found["library_name"] == "transformers"
    assert {name: found[name] for name in facts if name != "tags"} == {n: v for n, v in facts.items() if n != "tags"}
    assert {"clip", "shapes"} <= set(found["tags"])
    (result,) = found["model-index"][0]["results"]
    assert found["model-index"][0]["name"] == "tiny"
    assert result["dataset"] == {"name": "Shapes", "type": "me/shapes"}
    assert result["metrics"] == [{"type": "accuracy", "value": 0.875, "name": "top-1"}]


def test_numbers_keep_their_source():
    """The Hub's metadata has one source a data set: a second one would be given the numbers of the first."""
    task = ("zero-shot-image-classification", "imagenet", "ImageNet", "accuracy")
    sources = {"paper": 0.6, "peer": 0.7}
    evaluations = [
        EvalResult(*task, value, source_name=name, source_url=f"https://{name}.org") for name, value in sources.items()
    ]
    page = render(evaluations=evaluations)
    for name, value in sources.items():
        assert f"| ImageNet | {value:.1%} | [{name}](https://{name}.org) |" in page
    (result,) = ModelCard(page).data.eval_results
    assert (result.metric_value, result.source_name) == (0.6, "paper")


def test_tables_have_a_line_a_data_set_and_a_column_a_metric():
    recall = {"task_type": "image-text-retrieval", "metric_type": "recall_at_1"}
    evaluations = [
        EvalResult(dataset_type=name, dataset_name=name, metric_name=f"{side} R@1", metric_value=value, **recall)
        for name, side, value in (("A", "text", 0.5), ("A", "image", 0.25), ("B", "image", 0.125))
    ]
    page = render(evaluations=[*evaluations, EvalResult("linear-probe", "C", "C", "accuracy", 1.0)])
    assert "| data | text R@1 | image R@1 |\n|---|---|---|\n| A | 50.0% | 25.0% |\n| B |  | 12.5% |\n" in page
    assert "### linear-probe\n\n| data | accuracy |\n|---|---|\n| C | 100.0% |\n" in page


def test_the_page_knows_whether_code_comes_along():
    assert "trust_remote_code=True" in render(has_code=True)
    page = render(has_code=False)
    assert "trust_remote_code" not in page
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3 and all("clip_hf" in block.splitlines()[0] for block in blocks)


def test_labels_are_read_as_they_are_written():
    page = render(labels=["a café at night", "猫 & l'oiseau"])
    assert page.count("""["a café at night", "猫 & l'oiseau"]""") == 3


def test_a_license_of_ones_own_is_there_to_be_read():
    for missing in ({}, {"license_name": "mine"}, {"license_link": "LICENSE"}):
        with pytest.raises(ValueError, match="license is 'other', which needs license_name and license_link"):
            render(license="other", **missing)
    found = metadata(render(license="other", license_name="mine", license_link="LICENSE"))
    assert (found["license"], found["license_name"], found["license_link"]) == ("other", "mine", "LICENSE")


def test_metadata_survives_what_yaml_would_misread():
    page = render(name="no: yes", license="mit", evaluations=[MEASURED])
    assert yaml.safe_load(page.split("---")[1])["model-index"][0]["name"] == "no: yes"
