"""The layout of a CLIP vocabulary, and the files that hold one."""

import json

import pytest

from clip_hf.model.bpe_clip_hf import (
    BYTE_VOCABULARY,
    END_OF_TEXT,
    MIN_VOCAB_SIZE,
    START_OF_TEXT,
    assemble_vocabulary,
    check_vocabulary,
    parse_merges,
    read_merges,
    read_vocabulary,
)


def test_layout():
    vocab, merges = assemble_vocabulary([("a", "b"), ("ab", "c</w>")], 1_000)
    assert list(vocab) == [*BYTE_VOCABULARY, "ab", "abc</w>", START_OF_TEXT, END_OF_TEXT]
    assert list(vocab.values()) == list(range(MIN_VOCAB_SIZE + 2))
    assert merges == [("a", "b"), ("ab", "c</w>")]
    assert (BYTE_VOCABULARY[0], BYTE_VOCABULARY[256]) == ("!", "!</w>")


def test_two_merges_may_give_the_same_token():
    vocab, merges = assemble_vocabulary([("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc"), ("d", "e")], 518)
    assert list(vocab.values()) == list(range(518))
    assert merges == [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc"), ("d", "e")]


def test_the_size_bounds_the_merges():
    vocab, merges = assemble_vocabulary([("a", "b"), ("c", "d"), ("ab", "cd")], MIN_VOCAB_SIZE + 1)
    assert merges == [("a", "b")]
    assert vocab[END_OF_TEXT] == MIN_VOCAB_SIZE


def test_a_merge_of_unknown_tokens_is_refused():
    with pytest.raises(ValueError, match="merge 2 joins 'xy' and 'z'"):
        assemble_vocabulary([("a", "b"), ("xy", "z")], 1_000)


def test_check_vocabulary():
    vocab, _ = assemble_vocabulary([], MIN_VOCAB_SIZE)
    check_vocabulary(vocab)
    with pytest.raises(ValueError, match=r"2 entries is not CLIP's: it lacks !, .* \.\.\. \(514 of the 514"):
        check_vocabulary({"hello": 0, "world": 1})
    with pytest.raises(ValueError, match=r"it lacks <\|endoftext\|> \(1 of"):
        check_vocabulary({token: index for token, index in vocab.items() if token != END_OF_TEXT})
    with pytest.raises(ValueError, match="has id 513 in this vocabulary, but must have the largest, 600"):
        check_vocabulary(vocab | {"late": 600})


def test_merges_with_and_without_header():
    assert parse_merges("#version: 0.2\n# #\na b\n") == [("#", "#"), ("a", "b")]
    assert parse_merges("a b\n# x") == [("a", "b"), ("#", "x")]


@pytest.mark.parametrize("line", ["a", "a b c", "", " b", "a "])
def test_a_line_that_is_no_merge_names_file_and_line(tmp_path, line):
    file = tmp_path / "merges.txt"
    file.write_text(f"#version: 0.2\na b\n{line}\nc d\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"merges\.txt is not a merges.txt, lines of two tokens each \(line 3 is "):
        read_merges(file)


@pytest.mark.parametrize("content", ["{", "[1, 2]", "\x89PNG"])
def test_a_file_that_is_no_vocabulary_is_named(tmp_path, content):
    file = tmp_path / "vocab.json"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"vocab\.json is not a vocab.json, a JSON object of tokens and ids"):
        read_vocabulary(file)


def test_read_vocabulary(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"é": 0}), encoding="utf-8")
    assert read_vocabulary(tmp_path / "vocab.json") == {"é": 0}
