import pytest
import torch

from clip_hf.training.parameter_groups import decay_parameter_names, split_by_layer, split_by_tower
from tests.tiny_models import TOWERS, tiny_model

LAYERS = [f"{tower}.layers.{number}" for tower in ("vision_model", "text_model") for number in (0, 1)]
NORMS = [
    *("vision_model.pre_layernorm", "vision_model.post_layernorm", "text_model.final_layer_norm"),
    *(f"{layer}.{norm}" for layer in LAYERS for norm in ("layer_norm1", "layer_norm2")),
]
LINEARS = [
    f"{layer}.{name}" for layer in LAYERS for name in ("self_attn.qkv", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
]
NOT_DECAYED = {
    "logit_scale",
    "vision_model.embeddings.class_embedding",
    *(f"{norm}.weight" for norm in NORMS),
    *(f"{module}.bias" for module in (*NORMS, *LINEARS)),
}


def test_gains_biases_class_embedding_and_temperature_do_not_decay():
    model = tiny_model("vit")
    names = {name for name, _ in model.named_parameters()}
    assert names - set(decay_parameter_names(model)) == NOT_DECAYED


def test_kernels_and_embeddings_decay():
    decayed = set(decay_parameter_names(tiny_model("resnet")))
    assert {
        "vision_model.stem.conv1.weight",
        "vision_model.attention_pool.position_embedding",
        "vision_model.attention_pool.k_proj.weight",
        "vision_model.projection.weight",
        "text_model.embeddings.token_embedding.weight",
        "text_model.embeddings.position_embedding",
    } <= decayed
    assert not [name for name in decayed if "bn" in name or name.endswith("bias") or name == "logit_scale"]


@pytest.mark.parametrize("tower", TOWERS)
def test_what_zero_3_has_emptied_counts_by_its_own_shape(tower):
    model = tiny_model(tower)
    expected = decay_parameter_names(model)
    for parameter in model.parameters():
        parameter.ds_shape, parameter.data = parameter.shape, torch.empty(0)
    assert decay_parameter_names(model) == expected


def test_each_tower_has_its_learning_rate():
    model = tiny_model("vit")
    decayed = set(decay_parameter_names(model))
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [named[name] for name in named if name in decayed], "weight_decay": 0.2},
            {"params": [named[name] for name in named if name not in decayed], "weight_decay": 0.0},
        ],
        lr=1e-3,
    )
    groups = split_by_tower(optimizer.param_groups, model, {"vision_model": 1e-4, "text_model": None})

    name_of = {id(parameter): name for name, parameter in named.items()}
    found = {name_of[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found == {
        name: (1e-4 if name.startswith("vision_model") else 1e-3, 0.2 if name in decayed else 0.0) for name in named
    }
    assert sum(len(group["params"]) for group in groups) == len(named)
    assert [name_of[id(parameter)] for parameter in groups[0]["params"]] == ["logit_scale"]


def rates_by_name(model, layer_decay):
    group = {"params": list(model.parameters()), "lr": 1.0, "weight_decay": 0.0}
    groups = split_by_tower([group], model, {"vision_model": 2.0, "text_model": None})
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = split_by_layer(groups, model, layer_decay)
    return {name_of[id(p)]: group["lr"] for group in groups for p in group["params"]}


def test_each_layer_has_a_share_of_the_rate_of_the_layer_above():
    rates = rates_by_name(tiny_model("vit"), 0.5)
    expected = {
        **{"logit_scale": 1.0, "vision_model.projection.weight": 2.0, "vision_model.post_layernorm.bias": 2.0},
        **{"vision_model.layers.1.mlp.fc1.weight": 1.0, "vision_model.layers.0.layer_norm1.bias": 0.5},
        **{"vision_model.pre_layernorm.bias": 0.25, "vision_model.embeddings.position_embedding": 0.25},
        **{"text_model.projection.weight": 1.0, "text_model.final_layer_norm.weight": 1.0},
        **{"text_model.layers.1.self_attn.qkv.weight": 0.5, "text_model.layers.0.self_attn.qkv.weight": 0.25},
        "text_model.embeddings.token_embedding.weight": 0.125,
    }
    assert {name: rates[name] for name in expected} == expected
    assert rates.keys() == dict(tiny_model("vit").named_parameters()).keys()


def test_the_layers_of_a_resnet_are_its_bottlenecks():
    rates = rates_by_name(tiny_model("resnet"), 0.5)  # of depths 1, 2, 1, 1
    expected = {
        **{"vision_model.attention_pool.k_proj.weight": 2.0, "vision_model.layer4.0.conv1.weight": 1.0},
        **{"vision_model.layer3.0.bn1.weight": 0.5, "vision_model.layer2.1.conv1.weight": 0.25},
        **{"vision_model.layer2.0.downsample.0.weight": 0.125, "vision_model.layer1.0.conv3.weight": 0.0625},
        "vision_model.stem.conv1.weight": 0.03125,
    }
    assert {name: rates[name] for name in expected} == expected
