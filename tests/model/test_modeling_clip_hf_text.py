from math import ceil

import pytest
import torch
from torch import nn

from clip_hf.model.modeling_clip_hf_text import trim_padding
from clip_hf.model.prefixes_clip_hf import ROW_MULTIPLE, find_distinct_prefixes, find_prefixes_of_each_text
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
    calls = (model.get_text_features, model.text_model.find_prefixes, lambda ids: trim_padding(ids, 98))
    for call in calls:
        with pytest.raises(ValueError, match=r"1 of 4 texts \(first: number 1\) have no end-of-text token 98"):
            call(ids)


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


def prompts(config, prefix_length, batch_size=40):
    """Returns ids of texts that begin alike, one of them ending there."""
    ids = random_ids(config, batch_size)
    ids[:, :prefix_length] = torch.arange(10, 10 + prefix_length)
    ids[:, prefix_length] = torch.arange(batch_size) % 50
    ids[1, prefix_length:] = config.text_config.eos_token_id
    return ids


@pytest.mark.parametrize(
    ("implementation", "prefix_length"), [("sdpa", 0), ("sdpa", 1), ("sdpa", 5), ("eager", 5), ("flex_attention", 5)]
)
@torch.no_grad()
def test_features_alone_are_the_same(model, implementation, prefix_length):
    model.set_attn_implementation(implementation)
    ids = prompts(model.config, prefix_length)
    expected = model.text_model(ids)
    of_each_text = find_prefixes_of_each_text(ids, model.config.text_config.eos_token_id)
    for options in (
        {"pooled_only": True},
        {"prefixes": model.text_model.find_prefixes(ids)},
        {"prefixes": of_each_text},
    ):
        found = model.text_model(ids, **options)
        assert found.last_hidden_state is None
        torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=2e-6)
        torch.testing.assert_close(found.text_embeds, expected.text_embeds, rtol=0, atol=2e-6)


@pytest.mark.parametrize("find_prefixes", [None, find_distinct_prefixes, find_prefixes_of_each_text])
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_features_alone_have_the_same_gradients(model, find_prefixes, is_checkpointed):
    model.double().train()
    ids = prompts(model.config, 5).repeat(2, 1)
    gradients = []
    prefixes = find_prefixes and find_prefixes(ids, model.config.text_config.eos_token_id)
    for options in ({}, {"pooled_only": True, "prefixes": prefixes}):
        model.zero_grad()
        if options and is_checkpointed:
            model.activation_checkpointing_enable()
        embeds = model.text_model(ids, **options).text_embeds
        (embeds * torch.linspace(-1, 1, embeds.numel(), dtype=embeds.dtype).view_as(embeds)).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.text_model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-12, msg=name)


def test_each_distinct_prefix_is_computed_once(model):
    ids, rows = prompts(model.config, 5).repeat(2, 1), []
    for layer in model.text_model.layers:
        layer.mlp.register_forward_pre_hook(lambda module, args: rows.append(tuple(args[0].shape[:2])))
    model.text_model(ids, prefixes=model.text_model.find_prefixes(ids))
    texts = [text[: text.index(model.config.text_config.eos_token_id) + 1] for text in ids.tolist()]
    prefixes = {tuple(text[:end]) for text in texts for end in range(1, len(text) + 1)}
    assert rows == [(1, len(prefixes)), (1, len(set(map(tuple, texts))))]


def test_padding_is_not_computed(model):
    ids, rows = random_ids(model.config, batch_size=50), []
    for layer in model.text_model.layers:
        layer.mlp.register_forward_pre_hook(lambda module, args: rows.append(tuple(args[0].shape[:2])))
    eos_token_id = model.config.text_config.eos_token_id
    model.text_model(ids, prefixes=find_prefixes_of_each_text(ids, eos_token_id))
    num_tokens = sum(text.index(eos_token_id) + 1 for text in ids.tolist())
    assert rows == [(1, ceil(num_tokens / ROW_MULTIPLE) * ROW_MULTIPLE), (1, len(ids))]
    assert rows[0][1] < ids.numel()


def test_hidden_states_of_prefixes_are_those_of_whole_texts(model):
    ids = prompts(model.config, 5)
    prefixes = model.text_model.find_prefixes(ids)
    expected = model.text_model(ids, output_hidden_states=True).hidden_states
    found = model.text_model(ids, prefixes=prefixes, output_hidden_states=True).hidden_states
    for of_texts, of_prefixes in zip(expected[:-1], found[:-1], strict=True):
        ends = (ids == model.config.text_config.eos_token_id).int().argmax(dim=1)
        for text, end, states in zip(prefixes.numbers[prefixes.texts], ends, of_texts, strict=True):
            torch.testing.assert_close(of_prefixes[0, text[: end + 1]], states[: end + 1], rtol=0, atol=2e-6)


def test_prefixes_are_not_shared_with_dropout_under_func_or_with_parts_elsewhere(model):
    ids = random_ids(model.config)
    find = model.text_model.find_prefixes
    assert find(ids) is not None
    found = []
    torch.func.vmap(lambda text: found.append(find(text[None])) or text)(ids)
    for layer in (model.text_model.layers[1].self_attn, model.text_model.layers[0].mlp):
        layer.attention_dropout = 0.5
        assert find(ids) is not None  # evaluation has no dropout
        model.text_model.train()
        found.append(find(ids))
        model.text_model.eval()
        layer.attention_dropout = 0.0
    model.text_model.layers[0].mlp.fc1 = nn.Sequential(nn.Dropout(0.5), model.text_model.layers[0].mlp.fc1)  # LoRA's
    model.text_model.train()
    found.append(find(ids))
    found.append(tiny_model("vit").to("meta").text_model.find_prefixes(ids))
    found.append(find(ids.to("meta")))
    assert found == [None] * 6


@pytest.mark.gpu
def test_on_a_gpu_training_leaves_out_padding_and_adds_gradients_up_in_one_order(model):
    ids = prompts(model.config, 5, batch_size=256).cuda()
    tower = model.text_model.cuda()
    assert tower.find_prefixes(ids) is None  # evaluation
    tower.train()
    assert tower.find_prefixes(ids[:255]) is tower.find_prefixes(ids, is_sorted=True) is None
    prefixes = tower.find_prefixes(ids)
    assert len(prefixes.places) < ids.numel()

    def gradients(prefixes, dtype):
        model.zero_grad()
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            embeds = tower(ids, pooled_only=True, prefixes=prefixes).text_embeds
        embeds.float().square().sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in tower.parameters()])

    whole, rows = gradients(None, torch.float32), gradients(prefixes, torch.float32)
    torch.testing.assert_close(rows, whole, rtol=1e-4, atol=1e-4 * whole.abs().max().item())
    first, *others = (gradients(prefixes, torch.bfloat16) for _ in range(3))
    assert all(torch.equal(first, other) for other in others)


def test_prefixes_of_other_texts_are_refused(model):
    ids = random_ids(model.config)
    other = ids.clone()
    other[2, 1] += 1
    for texts in (ids[:3], ids.flip(0), other):
        with pytest.raises(ValueError, match=r"those of other texts.* than input_ids, of shape \(4, 16\): pass what"):
            model.text_model(ids, prefixes=model.text_model.find_prefixes(texts))


def test_gradients_of_what_many_texts_share_do_not_stop_to_grow_in_bfloat16(model):
    """A sum of a thousand like numbers, added one by one in bfloat16, ends at 256 of them."""
    ids, gradients = prompts(model.config, 5, batch_size=1024), []
    for dtype, prefixes in (
        (torch.float32, None),
        (torch.bfloat16, None),
        (torch.bfloat16, model.text_model.find_prefixes(ids)),
    ):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            model.text_model(ids, pooled_only=True, prefixes=prefixes).text_embeds.float().sum().backward()
        layer = model.text_model.layers[0]
        gradients.append(
            torch.cat(
                [
                    layer.self_attn.qkv.weight.grad.flatten(),
                    model.text_model.embeddings.position_embedding.grad.flatten(),
                ]
            )
        )
    exact, whole, shared = gradients
    assert (shared - exact).norm() < 2 * (whole - exact).norm()


def test_no_texts_are_an_error(model):
    ids = random_ids(model.config)[:0]
    for call in (model.text_model, model.text_model.find_prefixes):
        with pytest.raises(ValueError, match=r"there are no texts, input_ids has the shape \(0, 16\)"):
            call(ids)
