"""Ranks against lists sorted in float64 and shuffled, on cases made to be unpleasant."""

import itertools
import re
import time

import numpy as np
import pytest
import torch
from torch import nn

from clip_hf.evaluation.retrieval import Ranks, most_similar, rank_matches, retrieval_metrics
from tests.peak_memory import forget_peak, peak_bytes
from tests.ranks import run_on_ranks


def unit(*shape, seed=0):
    return nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def owners(num_images, most=7, seed=0):
    """1 to 7 captions an image, in an order that is not that of the images."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, most + 1, (num_images,), generator=generator)
    image_of_text = torch.arange(num_images).repeat_interleave(counts)
    return image_of_text[torch.randperm(len(image_of_text), generator=generator)]


def first_places(wrong, right):
    """The place of the first right candidate, from 1, in each order of wrong and right ones."""
    return [min(places) + 1 for places in itertools.combinations(range(wrong + right), right)]


def expected_ranks(similarities, is_right):
    """Probability of each rank of the best match, by the rule, from one row of float64 similarities."""
    best = similarities[is_right].max()
    equal = np.abs(similarities - best) <= 1e-12
    better = int(((similarities > best) & ~equal & ~is_right).sum())
    wrong, right = int((equal & ~is_right).sum()), int((equal & is_right).sum())
    found = first_places(wrong, right)
    return {better + place: found.count(place) / len(found) for place in set(found)}


def brute_force(images, texts, image_of_text):
    """The metrics, one query after the other, all orders of equal candidates written out."""
    similarities = images.double().numpy() @ texts.double().numpy().T
    is_right = image_of_text.numpy() == np.arange(len(images))[:, None]
    metrics = {}
    for modality, table, right in (("text", similarities, is_right), ("image", similarities.T, is_right.T)):
        places = [expected_ranks(row, of) for row, of in zip(table, right, strict=True)]
        for k in (1, 5, 10):
            found = [sum(share for place, share in row.items() if place <= k) for row in places]
            metrics[f"{modality}_retrieval_recall@{k}"] = np.mean(found)
        means = [sum(place * share for place, share in row.items()) for row in places]
        metrics[f"{modality}_retrieval_median_rank"] = np.median(means)
        metrics[f"{modality}_retrieval_mean_rank"] = np.mean(means)
    recalls = [value for name, value in metrics.items() if "recall" in name]
    return metrics | {"mean_recall": np.mean(recalls)}


def random_set():
    image_of_text = owners(40)
    return unit(40, 16), unit(len(image_of_text), 16, seed=1), image_of_text


def matching_set():
    image_of_text = owners(30, seed=3)
    images = unit(30, 16)
    texts = images[image_of_text] + 0.5 * unit(len(image_of_text), 16, seed=1)
    return images, nn.functional.normalize(texts, dim=1), image_of_text


def duplicates():
    """Images that occur twice; captions that occur twice, with the same image and with another."""
    images = unit(12, 8)
    images[5] = images[6] = images[7]
    image_of_text = torch.arange(12).repeat_interleave(3)
    texts = unit(36, 8, seed=1)
    texts[0] = texts[1] = texts[4] = texts[30]
    texts[15] = texts[16] = texts[20]
    return images, texts, image_of_text


def near_ties():
    """Similarities that differ by 1e-9, far below what float32 adds up to."""
    images = torch.zeros(9, 64)
    images[:, 0] = 1
    images[torch.arange(9), torch.arange(1, 10)] = torch.logspace(-9, -5, 9)
    texts = unit(18, 64, seed=2)
    return images, texts, torch.arange(9).repeat_interleave(2)


def one_image():
    return unit(1, 8), unit(4, 8, seed=1), torch.zeros(4, dtype=torch.long)


def collapsed():
    return unit(1, 8).expand(9, 8).clone(), unit(1, 8).expand(9, 8).clone(), torch.arange(9)


CASES = (random_set, matching_set, duplicates, near_ties, one_image, collapsed)


def metrics_of(images, texts, image_of_text, tile_size=4096):
    return retrieval_metrics(*rank_matches(images, texts, image_of_text, tile_size))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("tile_size", [3, 4096])
@pytest.mark.parametrize("share", [-1, 2], ids=["all in float64", "pair by pair"])
def test_metrics_equal_a_float64_brute_force(case, tile_size, share, monkeypatch):
    monkeypatch.setattr("clip_hf.evaluation.retrieval.MAX_NEAR_SHARE", share)
    monkeypatch.setattr("clip_hf.evaluation.retrieval.ROWS_PER_BLOCK", 2)
    assert metrics_of(*case(), tile_size) == pytest.approx(brute_force(*case()), abs=1e-9)


def test_a_collapsed_model_is_ranked_in_the_time_of_its_tiles():
    """Every pair is a near tie: pair by pair, these took minutes."""
    images = nn.functional.normalize(unit(1, 512) + 1e-8 * unit(600, 512, seed=1), dim=1)
    start = time.process_time()
    ranks = rank_matches(images, images.flip(0), torch.arange(600).flip(0))
    assert time.process_time() - start < 5
    own = images.double() @ images.double().T
    expected = (own > own.diagonal()[:, None] + 1e-12).sum(dim=1)
    assert torch.equal(ranks[0].num_better, expected)


def test_float32_alone_would_not_do():
    """The near ties are near: ranks from a float32 matrix are others."""
    images, texts, image_of_text = near_ties()
    single = (images @ texts.T)[image_of_text, torch.arange(len(texts))]
    plain = ((images @ texts.T) > single).sum(dim=0) + 1
    assert not torch.equal(plain.double(), rank_matches(images, texts, image_of_text)[1].expected)


def _all_metrics():
    return [metrics_of(*case(), 5) for case in CASES]


def test_two_processes_return_the_very_same():
    alone = _all_metrics()
    for of_rank in run_on_ranks(_all_metrics, 2):
        assert of_rank == alone


@pytest.mark.parametrize(("better", "equal", "right"), [(0, 3, 2), (2, 4, 3), (0, 0, 5), (4, 1, 1), (12, 2, 2)])
def test_probabilities_of_ties_are_those_of_drawing(better, equal, right):
    ranks = Ranks(torch.tensor([better]), torch.tensor([equal]), torch.tensor([right]))
    places = [better + place for place in first_places(equal, right)]
    assert ranks.expected.item() == pytest.approx(np.mean(places))
    for k in (1, 2, 5, 10):
        assert ranks.found(k).item() == pytest.approx(np.mean([place <= k for place in places]))


@pytest.mark.parametrize("block", [3, 4096])
def test_answers_are_the_most_similar(block, monkeypatch):
    monkeypatch.setattr("clip_hf.evaluation.retrieval.TILE_SIZE", block)
    values, indices = most_similar(unit(3, 8), unit(20, 8, seed=1), 4)
    table = unit(3, 8).double() @ unit(20, 8, seed=1).double().T
    assert torch.equal(indices, table.argsort(dim=1, descending=True)[:, :4])
    torch.testing.assert_close(values, table.gather(1, indices), rtol=0, atol=1e-15)
    assert most_similar(unit(3, 8), unit(2, 8), 4)[1].shape == (3, 2)


@pytest.mark.parametrize(
    ("images", "texts", "image_of_text", "message"),
    [
        (unit(3, 8), unit(3, 4), [0, 1, 2], "must be (I, D) and (T, D)"),
        (unit(3, 8), unit(3, 8), [0, 1], "image_of_text has shape (2,), but there are 3 texts"),
        (unit(3, 8), unit(3, 8), [0, 1, 3], "must be in [0, 3), but reaches 3"),
        (unit(3, 8), unit(3, 8), [0, 1, 1], "1 of 3 images have no text"),
        (2 * unit(3, 8), unit(3, 8), [0, 1, 2], "image_embeds must be finite and of unit length"),
        (unit(3, 8), unit(3, 8) * torch.nan, [0, 1, 2], "text_embeds must be finite and of unit length"),
    ],
)
def test_unfit_embeddings_are_refused(images, texts, image_of_text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        rank_matches(images, texts, torch.tensor(image_of_text))


@pytest.mark.slow
@pytest.mark.parametrize(("num_images", "num_texts"), [(10_000, 50_000)])
def test_memory_is_that_of_a_few_tiles(num_images, num_texts, record_property):
    """A matrix of these similarities alone would take 2 GB."""
    images, texts = unit(num_images, 512), unit(num_texts, 512, seed=1)
    before, start = forget_peak(), time.perf_counter()
    ranks = rank_matches(images, texts, torch.arange(num_texts) % num_images)
    grown = (peak_bytes() - before) / 2**30
    record_property("seconds", time.perf_counter() - start)
    record_property("gigabytes above the embeddings", grown)
    assert grown < 1
    assert ranks[1].expected.mean().item() == pytest.approx(num_images / 2, rel=0.02)  # chance
