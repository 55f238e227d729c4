"""Attention pooling of one query against attention that maps every token to a key and a value."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from clip_hf import ClipHfResNetConfig
from clip_hf.model.modeling_clip_hf_resnet import ClipHfAttentionPool

BATCH, WIDTH, SIDE, HEADS = 3, 256, 4, 4
TOKENS = 1 + SIDE**2


class PackedWeight(torch.Tensor):
    """A weight as quantizers put in the place of a parameter: `linear` knows it, and nothing else does."""

    @staticmethod
    def __new__(cls, weight):
        return torch.Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype)

    def __init__(self, weight):
        self.packed = weight.detach()

    def __tensor_flatten__(self):
        return ["packed"], None

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is nn.functional.linear:
            return func(args[0], args[1].packed, args[2])
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(f"{func} of a packed weight")


@pytest.fixture
def pool():
    torch.manual_seed(0)
    config = ClipHfResNetConfig(width=WIDTH // 32, num_attention_heads=HEADS, image_size=32 * SIDE)
    pool = ClipHfAttentionPool(config)
    for parameter in pool.parameters():
        nn.init.normal_(parameter, std=0.1)
    return pool


def with_every_token_mapped(pool):
    """Returns a pool of equal weights whose projections are layers like any other, so that it takes the plain way."""
    plain = copy.deepcopy(pool)
    for name in ("k_proj", "v_proj"):
        layer = nn.Linear(WIDTH, WIDTH, dtype=pool.k_proj.weight.dtype)
        layer.load_state_dict(getattr(pool, name).state_dict())
        setattr(plain, name, layer)
    return plain


def feature_map(dtype=torch.float32):
    return torch.randn(BATCH, WIDTH, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_one_query_is_pooled_as_with_keys_and_values_of_every_token_gradients_included(pool):
    pool = pool.double()
    plain = with_every_token_mapped(pool)
    plain.config._attn_implementation = "sdpa"
    results = {}
    for name, module in {"fast": pool, "plain": plain}.items():
        maps = feature_map(torch.float64).requires_grad_()
        pooled, _ = module(maps)
        assert pooled.shape == (BATCH, WIDTH)
        pooled.sin().sum().backward()
        results[name] = {"pooled": pooled, "maps": maps.grad}
        results[name] |= {key: parameter.grad for key, parameter in module.named_parameters()}
    for name, expected in results["plain"].items():
        torch.testing.assert_close(results["fast"][name], expected, rtol=1e-9, atol=1e-12)
        assert name == "k_proj.bias" or expected.abs().max() > 1e-3  # a bias of all keys changes nothing


def test_the_weights_are_those_of_written_out_attention(pool):
    plain = with_every_token_mapped(pool)
    plain.config._attn_implementation = "eager"
    (_, weights), (_, expected) = pool(feature_map()), plain(feature_map())
    assert weights.shape == (BATCH, HEADS, 1, TOKENS)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)


def test_no_token_is_mapped_to_a_key_or_a_value(pool):
    of_one_map = 2 * BATCH * TOKENS * WIDTH**2
    flops = {}
    for name, module in {"fast": pool, "plain": with_every_token_mapped(pool)}.items():
        with FlopCounterMode(display=False) as counter:
            module(feature_map())
        flops[name] = counter.get_total_flops()
    assert flops["plain"] > 2 * of_one_map
    assert flops["fast"] < of_one_map


def test_bfloat16_costs_one_more_rounding(pool):
    expected, _ = pool(feature_map())
    maps = feature_map(torch.bfloat16)
    pool = pool.bfloat16()
    errors = [
        (module(maps)[0] - expected).norm() / expected.norm() for module in (pool, with_every_token_mapped(pool))
    ]
    assert 0 < errors[0] < 2 * errors[1]


def test_autocast_gives_what_the_plain_way_gives(pool):
    plain = with_every_token_mapped(pool)
    plain.config._attn_implementation = "eager"
    with torch.autocast("cpu", torch.bfloat16):
        (pooled, attention), (expected, expected_attention) = pool(feature_map()), plain(feature_map())
    assert pooled.dtype == expected.dtype == torch.bfloat16
    assert attention.dtype == expected_attention.dtype
    torch.testing.assert_close(pooled, expected, rtol=0.05, atol=0.02)
    pooled.float().sum().backward()
    assert pool.k_proj.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["k_proj", "v_proj"])
def test_a_quantized_weight_is_left_to_its_own_linear(pool, name):
    expected, _ = pool(feature_map())
    layer = getattr(pool, name)
    weight = PackedWeight(layer.weight)
    del layer.weight
    layer.weight = weight
    pooled, _ = pool(feature_map())
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["k_proj", "v_proj"])
def test_a_layer_of_others_in_the_place_of_one_projection_is_a_linear_map(pool, name):
    expected, _ = pool(feature_map())
    setattr(pool, name, nn.Sequential(getattr(with_every_token_mapped(pool), name)))
    pooled, _ = pool(feature_map())
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-6)
