"""Pages as visitors see them: rendered to HTML, with whole tables and no empty sections."""

import re
from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token

from clip_hf.model_card.facts import ModelCardFacts
from clip_hf.model_card.page import render_card
from tests.tiny_models import tiny_config

PAGES = sorted((Path(__file__).parents[2] / "model_cards").glob("*.md"))
ODD = "a | b\nc"
FULL = ModelCardFacts(
    name="tiny",
    model_id="me/tiny",
    config=tiny_config("vit").to_dict(),
    summary="A model of shapes.",
    original="https://example.org/models/0123/tiny.pt",
    sources={"OpenCLIP": "them/tiny"},
    training={"pairs": ODD},
    conversion={ODD: "them/tiny"},
    curves="curves.png",
    evaluations=[EvalResult("image-classification", "me/shapes", ODD, "accuracy", 0.5, metric_name=ODD)],
    intended_use="Sorting of shapes.",
    limits=["Sees no red."],
    formats=["transformers", "open_clip"],
)


def tokens_of(page: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(ModelCard(page).text)


def html_of(page: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(ModelCard(page).text)


def assert_tables_and_sections(page: str) -> None:
    """Every table of a page becomes one, and no section is empty."""
    tokens = tokens_of(page)
    depths = [int(token.tag[1]) if token.type == "heading_open" else None for token in tokens]
    for index, depth in enumerate(depths):
        if depth is not None:  # after its text and its end comes content, or a section of its own
            following = tokens[index + 3]
            assert following.type != "heading_open" or int(following.tag[1]) > depth, tokens[index + 1].content
    assert tokens[-1].type != "heading_close"

    lines = [line for line in page.splitlines() if re.fullmatch(r"\|(-+\|)+", line)]
    assert len(lines) == sum(token.type == "table_open" for token in tokens) > 0
    texts = [token.content for token in tokens if token.type == "inline"]
    assert not [text for text in texts if re.search(r"^\||\|$|\*\*|```", re.sub(r"\*\*[^*]+\*\*", "", text))]


@pytest.mark.parametrize("page", [*PAGES, FULL], ids=lambda page: page.stem if isinstance(page, Path) else "full")
def test_tables_are_tables_and_no_section_is_empty(page):
    assert_tables_and_sections(page.read_text(encoding="utf-8") if isinstance(page, Path) else str(render_card(page)))


def test_what_would_break_a_table_stands_in_its_cell():
    html = html_of(str(render_card(FULL)))
    assert "<tr>\n<td>pairs</td>\n<td>a | b c</td>\n</tr>" in html
    assert "<tr>\n<td>a | b c</td>\n<td>them/tiny</td>\n</tr>" in html
    assert "<th>a | b c</th>" in html and "<td>a | b c</td>\n<td>50.0%</td>" in html


def test_the_image_of_the_curves_and_the_links_are_there():
    html = html_of(str(render_card(FULL)))
    assert '<img src="curves.png" alt="Training curves" />' in html
    assert '<a href="https://arxiv.org/abs/2103.00020">' in html
    assert "Made by clip_hf" not in re.sub(r"<!--.*?-->", "", html, flags=re.DOTALL)
