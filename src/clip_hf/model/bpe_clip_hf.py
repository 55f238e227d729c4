"""CLIP's byte-level BPE: what its words are, how its vocabulary is laid out, and how both are read from files."""

import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

START_OF_TEXT = "<|startoftext|>"
END_OF_TEXT = "<|endoftext|>"
END_OF_WORD = "</w>"

# OpenAI's first 512 entries: every byte as a printable character in the order of the code points, then the same
# characters as the end of a word.
BYTE_SYMBOLS = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTE_VOCABULARY = [*BYTE_SYMBOLS, *(symbol + END_OF_WORD for symbol in BYTE_SYMBOLS)]

MIN_VOCAB_SIZE = len(BYTE_VOCABULARY) + 2
OPENAI_VOCAB_SIZE = 49_408


def word_pattern(clean: bool) -> str:
    """Returns the pattern of a word: a special string, a contraction, letters, one digit, or a run of anything else.

    It is OpenAI's (openai/CLIP, clip/simple_tokenizer.py:78@d05afc4), which ignores case, in lower-cased text. Two
    characters notice: the long s (U+017F) is an s, and the iota below (U+0345), being a letter in upper case only,
    is part of no word. With `clean=False` it is transformers' pattern, which knows neither.
    """
    long_s, iota_below = ("\u017f", "\u0345") if clean else ("", "")
    return "|".join(
        [
            rf"<\|[s{long_s}]tartoftext\|>|<\|endoftext\|>",
            rf"'[s{long_s}]|'t|'re|'ve|'m|'ll|'d",
            r"\p{L}+|\p{N}",
            rf"[^\s\p{{L}}\p{{N}}{iota_below}]+",
        ]
    )


def build_backend(vocab: dict[str, int], merges: list[tuple[str, str]], clean: bool) -> Tokenizer:
    """Returns the tokenizers library's pipeline around a BPE model: lower case, words, bytes, merges.

    Args:
        vocab: ids of all tokens.
        merges: pairs of tokens in the order in which they join.
        clean: True where texts come cleaned as OpenAI cleans them; False makes transformers' pipeline, which composes
            characters itself (ftfy has, and OpenAI lower-cases and unescapes after it) and splits words once more.

    Raises:
        ValueError: a merge has a token that the vocabulary lacks.
    """
    try:
        backend = Tokenizer(models.BPE(vocab, merges, end_of_word_suffix=END_OF_WORD))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"Vocabulary and merges do not belong together: {error}") from error
    steps = [normalizers.Lowercase()] if clean else [normalizers.NFC(), normalizers.Lowercase()]
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(word_pattern(clean)), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not clean),
        ]
    )
    # The last word's end is cut by a pattern: the library's Strip decoder panics where there is no text at all.
    last_end, end = decoders.Replace(Regex(f"{END_OF_WORD}$"), ""), decoders.Replace(END_OF_WORD, " ")
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), last_end, end])
    return backend


def read_vocabulary(path: str | PathLike[str]) -> dict[str, int]:
    """Returns the ids of all tokens from a vocab.json.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        vocab = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a vocab.json, a JSON object of tokens and ids ({error})") from error
    if not isinstance(vocab, dict):
        raise ValueError(
            f"{path} is not a vocab.json, a JSON object of tokens and ids: it is a {type(vocab).__name__}"
        )
    return vocab


def read_merges(path: str | PathLike[str]) -> list[tuple[str, str]]:
    """Returns the pairs of tokens in a merges.txt, in the order in which they join.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        return parse_merges(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a merges.txt, lines of two tokens each ({error})") from error


def parse_merges(text: str) -> list[tuple[str, str]]:
    """Returns the merges in a text of two tokens per line, of which a first line with "#version:" is none.

    Raises:
        ValueError: a line is not two tokens.
    """
    lines = text.rstrip("\n").split("\n")
    header = 1 if "#version:" in lines[0] else 0
    merges = []
    for number, line in enumerate(lines[header:], start=header + 1):
        left, _, right = line.partition(" ")
        if not (left and right) or " " in right:
            raise ValueError(f"line {number} is {line!r:.80}")
        merges.append((left, right))
    return merges


def assemble_vocabulary(
    merges: Iterable[tuple[str, str]], vocab_size: int
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns a vocabulary in OpenAI's layout with at most `vocab_size` entries, and the merges that it has room for.

    Args:
        merges: pairs of tokens, the most frequent first; two of them may give the same token.
        vocab_size: bound on the entries, with the special tokens.

    Raises:
        ValueError: a merge joins a token that is neither a byte nor made by an earlier merge.
    """
    vocab = {token: index for index, token in enumerate(BYTE_VOCABULARY)}
    used: list[tuple[str, str]] = []
    for left, right in merges:
        if left not in vocab or right not in vocab:
            raise ValueError(f"merge {len(used) + 1} joins {left!r} and {right!r}, of which no earlier one made both")
        if left + right not in vocab:
            if len(vocab) == vocab_size - 2:
                break
            vocab[left + right] = len(vocab)
        used.append((left, right))
    return vocab | {START_OF_TEXT: len(vocab), END_OF_TEXT: len(vocab) + 1}, used


def check_vocabulary(vocab: dict[str, int]) -> None:
    """Raises a ValueError unless every text has ids in this vocabulary and the end token's is the largest one."""
    missing = [token for token in (*BYTE_VOCABULARY, START_OF_TEXT, END_OF_TEXT) if token not in vocab]
    if missing:
        raise ValueError(
            f"This vocabulary of {len(vocab)} entries is not CLIP's: it lacks {', '.join(missing[:5])}"
            f"{' ...' if missing[5:] else ''} ({len(missing)} of the {MIN_VOCAB_SIZE} that every CLIP vocabulary has: "
            f"256 bytes, the same with {END_OF_WORD}, {START_OF_TEXT} and {END_OF_TEXT})"
        )
    if vocab[END_OF_TEXT] != max(vocab.values()):
        raise ValueError(
            f"{END_OF_TEXT} has id {vocab[END_OF_TEXT]} in this vocabulary, but must have the largest, "
            f"{max(vocab.values())}: it is how the text tower finds the end"
        )
