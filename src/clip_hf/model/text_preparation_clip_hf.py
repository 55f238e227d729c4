"""What happens to a text before CLIP's tokenizer splits it into words: cleaning, exactly as OpenAI cleans."""

import html
import re
from collections.abc import Sequence
from typing import Any

# What cleaning may change: anything outside ASCII, control characters that are not white space, HTML entities.
UNCLEAN = re.compile(r"[^\t\n\f\r -%'-~]")

# Group 1: a special string that stands as a word of its own. Group 2: punctuation right before one, which takes the
# special string's first two characters into its own word.
SPECIAL_STRING = re.compile(r"(<\|(?:start|end)oftext\|>)|((?:[^\w\s\u0345]|_)<\|)(?=(?:start|end)oftext\|>)")


def check_texts(texts: Sequence[Any]) -> None:
    """Raises a ValueError if one is not a string: the tokenizers library would take a list of two for a pair."""
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"A text must be a string, but number {number} is a {type(text).__name__}, {text!r:.80}: pass the "
                "captions as one flat list (or the words of texts with is_split_into_words=True)"
            )


def prepare_text(text: str) -> str:
    """Returns a text from which the tokenizers library makes OpenAI's ids; clean text comes back as it is.

    Raises:
        ImportError: the text needs cleaning and ftfy is not installed.
    """
    if UNCLEAN.search(text):
        text = clean_text(text)
    return separate_special_strings(text) if "<|" in text else text


def clean_text(text: str) -> str:
    """Returns the text as OpenAI cleans it: repaired, HTML unescaped twice, white space folded, lower case.

    Raises:
        ImportError: ftfy is not installed.
    """
    try:
        import ftfy
    except ImportError as error:
        raise ImportError(
            "This text has characters that CLIP's tokenizer repairs with ftfy first, and ftfy is not installed: run "
            "`pip install ftfy`. (A tokenizer with clean=False does without it, but its ids are not OpenAI's.)"
        ) from error
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def separate_special_strings(text: str) -> str:
    """Returns the lower-cased text with a space inside every special string that is no word of its own.

    OpenAI's code finds special strings while it splits words, the tokenizers library before: to OpenAI
    "!<|endoftext|>" is "!<|", "endoftext" and "|>". With the space, which belongs to no word, both find the same.
    """
    return SPECIAL_STRING.sub(lambda match: match[1] or f"{match[2]} ", text.lower())
