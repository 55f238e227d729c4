"""Cleaning as OpenAI's code does it, and the short cut of clean text, which must change nothing."""

import random
import re
import sys

import ftfy
import pytest

from clip_hf.model.text_preparation_clip_hf import UNCLEAN, clean_text, prepare_text, separate_special_strings

ASCII = [chr(code) for code in range(128)]
# What ftfy looks for in ASCII: terminal escapes, control characters, line ends, entities (with and without tags).
FRAGMENTS = [
    *ASCII,
    *("\x1b[31m", "\x1b[0m", "\x1b[", "\r\n", "&amp;", "&lt", "&#39;", "&eacute;", "&NTILDE;", "<b>", "<", "&"),
    *("cat", "Two Dogs", "it's", "3.14", "  ", "<|endoftext|>", "<|", "|>"),
]


def fold(text: str) -> str:
    """What the tokenizers library does by itself: lower case, and white space that belongs to no word."""
    return re.sub(r"\s+", " ", text).strip().lower()


@pytest.mark.parametrize("character", ASCII, ids=[f"{code:02x}" for code in range(128)])
def test_every_ascii_character_that_cleaning_changes_is_unclean(character):
    for context in (character, f"a{character}b", f"A {character} b", f"[{character}[1m", f"{character}amp;"):
        if not UNCLEAN.search(context):
            assert clean_text(context) == fold(context)


def test_the_short_cut_equals_full_cleaning_on_random_ascii():
    generator = random.Random(0)
    num_clean = 0
    for _ in range(20_000):
        text = "".join(generator.choices(FRAGMENTS, k=generator.randrange(1, 8)))
        if not UNCLEAN.search(text):
            num_clean += 1
            assert clean_text(text) == fold(text), ascii(text)
    assert num_clean > 2_000


def test_clean_text_never_meets_ftfy(monkeypatch):
    def refuse(text):
        raise AssertionError(f"ftfy was called for {text!r}")

    monkeypatch.setattr(ftfy, "fix_text", refuse)
    for text in ("A dog, 2 cats!", "tabs\tand\nlines\r\n", "it's <b>", '~`^_{|}[\\]@#$%*()+-=;:"?/.,'):
        assert prepare_text(text) is text
    with pytest.raises(AssertionError, match="ftfy was called"):
        prepare_text("café")


@pytest.mark.parametrize("text", ["café", "a&amp;b", "\x1b[31mred", "nul\0", "vertical\x0btab"])
def test_without_ftfy_text_that_needs_it_is_refused(monkeypatch, text):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert prepare_text("a plain caption") == "a plain caption"
    with pytest.raises(ImportError, match="pip install ftfy"):
        prepare_text(text)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("&amp;lt;B&amp;gt;", "<b>"),
        ("<&amp;amp;>", "<&>"),
        ("schÃ¶n", "schön"),
        ("“Curly”\u2028 quotes", '"curly" quotes'),
        (" ΟΔΟΣ\n\t", "οδος"),
        ("\x1b[1mbold\x1b[0m \x00", "bold"),
        ("<e&#769;>", "<e\u0301>"),
        ("", ""),
    ],
)
def test_cleaning(text, cleaned):
    assert clean_text(text) == cleaned


@pytest.mark.parametrize(
    ("text", "separated"),
    [
        ("<|ENDOFTEXT|>", "<|endoftext|>"),
        ("a<|endoftext|>b <|startoftext|>2<|endoftext|>", "a<|endoftext|>b <|startoftext|>2<|endoftext|>"),
        ("<|endoftext|><|endoftext|>", "<|endoftext|><|endoftext|>"),
        ("!<|endoftext|>", "!<| endoftext|>"),
        ("_<|endoftext|>", "_<| endoftext|>"),
        ("<|endoftext|>!<|endoftext|>", "<|endoftext|>!<| endoftext|>"),
        ("!<|endoftext|><|startoftext|>", "!<| endoftext|><| startoftext|>"),
        ("<|other|> !<|", "<|other|> !<|"),
    ],
)
def test_special_strings_inside_punctuation_are_none(text, separated):
    assert separate_special_strings(text) == separated
