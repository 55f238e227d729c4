"""Prefixes against a plain enumeration of them."""

import pytest
import torch

from clip_hf.model.prefixes_clip_hf import ROW_MULTIPLE, find_distinct_prefixes, find_prefixes_of_each_text

EOS = 9


def enumerate_prefixes(input_ids):
    """Returns the prefixes of every text, the end counted and no padding."""
    texts = [text[: text.index(EOS) + 1] for text in input_ids.tolist()]
    return [[tuple(text[:end]) for end in range(1, len(text) + 1)] for text in texts]


def random_texts(num_texts, length, seed):
    """Returns texts of few different tokens, which begin alike and come twice."""
    ids = torch.randint(7, (num_texts, length), generator=torch.Generator().manual_seed(seed)) % 3
    ends = torch.randint(length, (num_texts,), generator=torch.Generator().manual_seed(seed))
    ids[torch.arange(num_texts), ends] = EOS
    return ids


TEXTS = {
    "one": torch.tensor([[1, 2, EOS, 5]]),
    "ends alone": torch.full((3, 4), EOS),
    "nothing shared": torch.tensor([[1, 2, EOS], [2, 2, EOS], [3, 1, EOS]]),
    "one text is how another begins": torch.tensor([[1, 2, EOS, EOS], [1, 2, 3, EOS], [1, 2, EOS, 3]]),
    "random": random_texts(40, 7, seed=0),
    "long": random_texts(20, 77, seed=1),
}


@pytest.mark.parametrize("name", TEXTS)
def test_each_distinct_prefix_is_there_once(name):
    texts = enumerate_prefixes(TEXTS[name])
    found = find_distinct_prefixes(TEXTS[name], EOS)
    distinct = {prefix for text in texts for prefix in text}
    assert found.places.shape == (len(distinct),)
    assert len(found.numbers) == len({text[-1] for text in texts})
    numbers = found.numbers[found.texts].tolist()
    number_of = {prefix: row[len(prefix) - 1] for text, row in zip(texts, numbers, strict=True) for prefix in text}
    for text, row in zip(texts, numbers, strict=True):
        assert row[: len(text)] == [number_of[prefix] for prefix in text]
    assert sorted(number_of.values()) == list(range(len(distinct)))
    for prefix, number in number_of.items():
        row, column = divmod(found.places[number].item(), found.input_ids.shape[1])
        assert tuple(found.input_ids[row, : column + 1].tolist()) == prefix
    assert found.ends[0, found.texts].tolist() == [number_of[text[-1]] for text in texts]


@pytest.mark.parametrize("name", TEXTS)
def test_each_prefix_of_each_text_is_there_without_padding(name):
    texts = enumerate_prefixes(TEXTS[name])
    found = find_prefixes_of_each_text(TEXTS[name], EOS)
    num_tokens = sum(map(len, texts))
    assert len(found.places) % ROW_MULTIPLE == 0 <= len(found.places) - num_tokens < ROW_MULTIPLE
    numbers = [row[: len(text)] for text, row in zip(texts, found.numbers.tolist(), strict=True)]
    assert [number for row in numbers for number in row] == list(range(num_tokens))
    assert found.numbers.max() < num_tokens
    assert found.ends[0].tolist() == [row[-1] for row in numbers]


@pytest.mark.parametrize("find", [find_distinct_prefixes, find_prefixes_of_each_text])
@pytest.mark.parametrize("name", TEXTS)
def test_what_is_gathered_and_spread_is_the_same_again(name, find):
    found = find(TEXTS[name], EOS)
    rows = torch.randn(1, found.places.numel(), 3)
    num_read = found.numbers.max() + 1  # the rows behind are there to fill up
    assert torch.equal(found.gather(found.spread(rows))[:, :num_read], rows[:, :num_read])
    at_ends = rows[:, found.ends[0]]
    lengths = (TEXTS[name] == EOS).int().argmax(dim=1)
    whole_texts = found.spread(rows)[found.texts]
    assert torch.equal(found.spread_texts(at_ends), whole_texts[torch.arange(len(lengths)), lengths])
