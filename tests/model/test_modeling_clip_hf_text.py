import pytest
import torch

from clip_hf.model.modeling_clip_hf_text import trim_padding
from tests.tiny_models import random_ids, tiny_model


@pytest.fixture
def model():
    return tiny_model("vit").eval()


def test_padding_content_never_matters(model):
    ids = random_ids(model.config, batch_size=8)
    eos = model.config.text_config.eos_token_id
    behind_the_end = (ids == eos).cumsum(dim=1) > 1
    features = model.get_text_features(ids).pooler_output
    for padding in (0, 7, model.config.text_config.bos_token_id):
        padded = ids.masked_fill(behind_the_end, padding)
        assert torch.equal(model.get_text_features(padded).pooler_output, features)
        mask = (~behind_the_end).long()
        assert torch.equal(model.get_text_features(padded, attention_mask=mask).pooler_output, features)


def test_trimming_leaves_features_unchanged(model):
    ids = random_ids(model.config, batch_size=8)
    ids[:, 10:] = model.config.text_config.eos_token_id
    trimmed = trim_padding(ids, model.config.text_config.eos_token_id)
    assert trimmed.shape[1] <= 11 < ids.shape[1]
    assert (trimmed == model.config.text_config.eos_token_id).any(dim=1).all()
    torch.testing.assert_close(
        model.get_text_features(trimmed).pooler_output,
        model.get_text_features(ids).pooler_output,
        rtol=1e-5,
        atol=1e-5,
    )


def test_trimming_keeps_a_text_that_fills_all_positions(model):
    ids = random_ids(model.config)
    eos = model.config.text_config.eos_token_id
    ids[2] = 5
    ids[2, -1] = eos
    assert trim_padding(ids, eos).shape == ids.shape


def test_text_without_end_raises_where_it_can_be_seen(model):
    ids = random_ids(model.config)
    ids[1] = 5
    for call in (lambda: model.get_text_features(ids), lambda: trim_padding(ids, 98)):
        with pytest.raises(ValueError, match=r"1 of 4 texts \(first: number 1\) have no end-of-text token 98"):
            call()


def test_too_long_text_raises_with_both_numbers(model):
    ids = torch.full((1, 17), 98)
    with pytest.raises(ValueError, match="17 tokens long, but the model has 16 positions"):
        model.get_text_features(ids)


def test_added_positions_take_longer_texts_and_change_no_old_feature(model, tmp_path):
    ids = random_ids(model.config)
    before = model.get_text_features(ids).pooler_output
    model.extend_text_positions(24)
    assert torch.equal(model.get_text_features(ids).pooler_output, before)
    longer = torch.cat([ids[:, :1], torch.full((4, 22), 5), torch.full((4, 1), 98)], dim=1)
    features = model.get_text_features(longer).pooler_output
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.text_config.max_position_embeddings == 24
    assert torch.equal(loaded.get_text_features(longer).pooler_output, features)
    with pytest.raises(ValueError, match="24 positions already, 24 were asked for"):
        model.extend_text_positions(24)


def test_later_tokens_never_reach_earlier_ones(model):
    ids = random_ids(model.config)
    other = ids.clone()
    other[:, 9:] = 98
    states = model.text_model(ids).last_hidden_state
    assert torch.equal(model.text_model(other).last_hidden_state[:, :9], states[:, :9])
