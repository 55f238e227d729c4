"""Layouts of state dicts: complete, bit-identical there and back, and the same that transformers' loader reads."""

import itertools

import pytest
import torch

from clip_hf import ClipHfConfig, ClipHfModel
from clip_hf.conversion.layouts import LAYOUTS, foreign_names, from_layout, tensor_shapes, to_layout
from clip_hf.model.architectures_clip_hf import ARCHITECTURES
from tests.model.test_modeling_clip_hf import PARAMETERS, transformers_clip
from tests.open_clip_folders import custom_text
from tests.openai_weights import openai_weights
from tests.tiny_models import TOWERS, tiny_config

INTEGERS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


def narrow_config(name: str) -> ClipHfConfig:
    """A released architecture with its own blocks, each as narrow as can be."""
    vision = {"width": 2} if name.startswith("RN") else {"hidden_size": 8}
    return ClipHfConfig.from_architecture(
        name, projection_dim=6, vision_config=vision, text_config={"hidden_size": 8, "vocab_size": 20}
    )


def random_bits(config: ClipHfConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of mixed types with any bit pattern, what is not a number among them."""
    generator, types = torch.Generator().manual_seed(seed), itertools.cycle(INTEGERS.items())
    weights = {}
    for name, shape in tensor_shapes(config).items():
        dtype, integer = next(types)
        limits = torch.iinfo(integer)
        bits = torch.randint(limits.min, limits.max, shape, dtype=integer, generator=generator)
        weights[name] = bits.long() if name.endswith("num_batches_tracked") else bits.view(dtype)
    return weights


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        integer = INTEGERS.get(tensor.dtype, tensor.dtype)
        assert found[name].view(integer).equal(tensor.view(integer)), name


def layouts_of(config: ClipHfConfig) -> list[str]:
    is_vit = config.vision_config.model_type == "clip_hf_vit"
    return [layout for layout in LAYOUTS if is_vit or layout != "transformers"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_pair_of_layouts_is_bit_identical_there_and_back(name):
    config = narrow_config(name)
    ours = random_bits(config)
    for one, other in itertools.permutations(layouts_of(config), 2):
        there = to_layout(ours, one, config)
        across = to_layout(from_layout(there, one, config), other, config)
        back = to_layout(from_layout(across, other, config), one, config)
        assert_same_bits(back, there)
        assert_same_bits(from_layout(back, one, config), ours)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_number_of_tensors_is_that_of_openais_code(name):
    config = ClipHfConfig.from_architecture(name)
    names = [part for ours in tensor_shapes(config) for part in foreign_names(ours, "openai", config)]
    assert len(set(names)) == len(names) == PARAMETERS[name][3]


@pytest.mark.parametrize("tower", TOWERS)
def test_openais_names_are_those_of_the_published_weights(tower):
    weights = openai_weights(tower)
    config = tiny_config(tower)
    names = {part for ours in tensor_shapes(config) for part in foreign_names(ours, "openai", config)}
    assert names == weights.keys() - {"input_resolution", "context_length", "vocab_size"}


def test_transformers_names_and_shapes_are_transformers_own():
    config = tiny_config("vit")
    towers = [dict(part.to_dict()) for part in (config.text_config, config.vision_config)]
    fields = [{name: value for name, value in tower.items() if name in transformers_fields} for tower in towers]
    expected = transformers_clip(*fields, 32).state_dict()
    converted = to_layout(ClipHfModel(config).state_dict(), "transformers", config)
    assert {name: tensor.shape for name, tensor in converted.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


transformers_fields = {
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "image_size",
    "max_position_embeddings", "bos_token_id", "eos_token_id", "patch_size",
}  # fmt: skip


@pytest.mark.parametrize("name", ["ViT-B/32", "RN50"])
def test_the_loaders_tables_say_the_same(name):
    """`from_pretrained` reads each layout by tables of its own, which this module must not contradict."""
    config = narrow_config(name)
    ours = {name: torch.randn(shape) for name, shape in tensor_shapes(config).items()}
    ours = {name: tensor.long() if name.endswith("tracked") else tensor for name, tensor in ours.items()}
    for layout in layouts_of(config):
        model = ClipHfModel.from_pretrained(None, config=config, state_dict=to_layout(ours, layout, config))
        assert_same_bits(dict(model.state_dict()), ours)


@pytest.mark.parametrize("tower", TOWERS)
def test_open_clips_custom_text_layout_is_read(tower):
    config = tiny_config(tower)
    ours = random_bits(config)
    assert_same_bits(from_layout(custom_text(to_layout(ours, "open_clip", config)), "open_clip", config), ours)


def broken(edit, layout="transformers"):
    config = tiny_config("vit")
    weights = to_layout(random_bits(config), layout, config)
    edit(weights)
    return lambda: from_layout(weights, layout, config)


def test_what_is_no_weight_is_left_out():
    extras = {"text_model.embeddings.position_ids": torch.arange(16), "input_resolution": torch.tensor(1)}
    assert broken(lambda weights: weights.update(extras))()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda w: w.pop("text_model.encoder.layers.1.self_attn.k_proj.bias"),
            r"1 missing: .*layers\.1.*k_proj\.bias",
        ),
        (lambda w: w.update(more=torch.ones(1)), "1 superfluous: more"),
        (lambda w: w.update(logit_scale=torch.ones(3)), r"logit_scale \(as ours \[3\] instead of \[1\]\)"),
        (
            lambda w: w.update({"text_projection.weight": torch.ones(4, 4)}),
            r"1 wrongly shaped: text_projection.weight",
        ),
        (
            lambda w: w.update({"vision_model.encoder.layers.0.self_attn.q_proj.weight": torch.ones(24, 48)}),
            r"q_proj.weight \(as ours \[24, 48\] instead of \[48, 48\]\)",
        ),
        (lambda w: w.clear(), r"\d+ missing: .*, .*, .*, .*, .* \.\.\."),
    ],
)
def test_what_does_not_fit_is_named(edit, message):
    with pytest.raises(ValueError, match=message):
        broken(edit)()


def test_transposed_projection_of_wrong_shape_is_named():
    with pytest.raises(ValueError, match="wrongly shaped: text_projection"):
        broken(lambda weights: weights.update(text_projection=torch.ones(32, 64)), "openai")()


def test_one_missing_tensor_hides_no_other():
    def edit(weights):
        del weights["logit_scale"], weights["visual_projection.weight"]
        weights["more"] = torch.ones(1)

    with pytest.raises(ValueError, match=r"2 missing: logit_scale, visual_projection\.weight; 1 superfluous: more"):
        broken(edit)()
