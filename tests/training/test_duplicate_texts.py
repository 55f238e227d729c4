"""Pairs with one text: how they are found, and that the loss compares them no more."""

import pytest
import torch
import torch.nn.functional as F

from clip_hf.training.duplicate_texts import group_by_text
from tests.tiny_models import tiny_model
from tests.tiny_pairs import TinyPairs
from tests.training.test_trainer import make_trainer


def test_equal_texts_have_equal_numbers_whatever_is_behind_their_end():
    config = tiny_model("vit").config.text_config
    end = config.eos_token_id
    rows = [[5, 6, 7, end], [6, 5, 7, end], [5, 6, 7, end], [5, end, 7, end], [5, end, 6, 7], [end, 0, 0, 0]]
    groups = group_by_text(torch.tensor(rows), config)
    _, numbers = groups.unique(return_inverse=True)
    assert (numbers[:, None] == numbers).int().sum(1).tolist() == [2, 1, 2, 2, 2, 1]
    longer = F.pad(torch.tensor(rows), (0, 3), value=end)
    assert torch.equal(group_by_text(longer, config), groups)


def test_random_texts_all_differ():
    config = tiny_model("vit").config.text_config
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(config.eos_token_id, (200_000, 6), generator=generator).unique(dim=0)
    assert len(group_by_text(texts, config).unique()) == len(texts)


@pytest.mark.parametrize("is_excluded", [False, True])
def test_pairs_of_one_text_are_no_negatives(is_excluded, tmp_path):
    """Reference: the cross-entropy of logits without those of other pairs of the text."""
    model = tiny_model("vit").eval()
    pairs = TinyPairs(model.config, 8)
    pairs.input_ids[5], pairs.input_ids[6] = pairs.input_ids[1], pairs.input_ids[1]
    with torch.no_grad():
        logits = model(input_ids=pairs.input_ids, pixel_values=pairs.pixel_values).logits_per_image
    twins = (pairs.input_ids[:, None] == pairs.input_ids).all(-1)
    assert twins.sum() == 8 + 6
    if is_excluded:
        logits = logits.masked_fill(twins & ~torch.eye(8, dtype=torch.bool), -torch.inf)
    expected = (F.cross_entropy(logits, torch.arange(8)) + F.cross_entropy(logits.T, torch.arange(8))) / 2
    trainer = make_trainer(tmp_path, model, pairs, max_steps=1, exclude_duplicate_texts=is_excluded)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-4)
