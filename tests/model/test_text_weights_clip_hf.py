"""Every way to change weights that we know of is seen, and nothing else is."""

import pytest
import torch

from clip_hf.model.text_weights_clip_hf import describe_text_tower, identify_text_weights
from tests.model.tiny_zero_shot import tiny_transformers_model, tiny_zero_shot_model
from tests.tiny_models import random_ids, random_pixels


def step_fused_optimizer(model):
    """Leaves the versions of the weights as they were."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(random_ids(model.config), random_pixels(model.config), return_loss=True).loss.backward()
    versions = [weight._version for weight in model.parameters()]
    optimizer.step()
    assert versions == [weight._version for weight in model.parameters()]


def step_optimizer(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    model(random_ids(model.config), random_pixels(model.config), return_loss=True).loss.backward()
    optimizer.step()


def merge_into_data(model):
    """What PEFT does when it merges an adapter: neither place nor version changes."""
    model.text_model.layers[1].mlp.fc1.weight.data += 1e-3


def replace_data(model):
    weight = model.text_model.layers[0].mlp.fc1.weight
    weight.data = weight.data.clone()


def edit_one_number(model):
    with torch.no_grad():
        model.text_model.embeddings.token_embedding.weight[7, 3] += 1


def load_other_weights(model):
    model.load_state_dict(tiny_zero_shot_model("vit", seed=1).state_dict())


def cast_there_and_back(model):
    model.to(torch.bfloat16).to(torch.float32)


def add_positions(model):
    model.extend_text_positions(99)


CHANGES = [
    step_fused_optimizer,
    step_optimizer,
    merge_into_data,
    replace_data,
    edit_one_number,
    load_other_weights,
    cast_there_and_back,
    add_positions,
    lambda model: model.to(torch.bfloat16),
    lambda model: model.to("meta"),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_the_text_tower_is_seen(change):
    model = tiny_zero_shot_model("vit")
    before = identify_text_weights(model)
    change(model)
    assert identify_text_weights(model) != before


@pytest.mark.parametrize("make_model", [lambda: tiny_zero_shot_model("resnet"), tiny_transformers_model])
def test_using_a_model_and_training_its_image_tower_change_nothing(make_model):
    model = make_model()
    before = identify_text_weights(model), describe_text_tower(model)
    model(
        input_ids=random_ids(model.config), pixel_values=random_pixels(model.config), return_loss=True
    ).loss.backward()
    with torch.no_grad():
        for weight in (*model.vision_model.parameters(), model.logit_scale):
            weight.add_(1)
    assert (identify_text_weights(model), describe_text_tower(model)) == before


def test_the_projection_of_transformers_model_counts():
    model = tiny_transformers_model()
    before = identify_text_weights(model), describe_text_tower(model)
    with torch.no_grad():
        model.text_projection.weight.add_(1)
    after = identify_text_weights(model), describe_text_tower(model)
    assert all(new != old for new, old in zip(after, before, strict=True))


def test_weights_made_in_inference_mode_have_no_version_and_do_no_harm():
    with torch.inference_mode():
        model = tiny_zero_shot_model("vit")
    assert identify_text_weights(model) == identify_text_weights(model)


def test_the_description_is_of_the_values_alone():
    model, same = tiny_zero_shot_model("vit"), tiny_zero_shot_model("vit")
    description = describe_text_tower(model)
    assert description == describe_text_tower(same)
    assert (description["model_type"], description["dtype"], len(description["sha256"])) == ("clip_hf", "float32", 64)
    with torch.no_grad():
        same.text_model.embeddings.token_embedding.weight[7, 3] += 1e-3
    assert describe_text_tower(same) != description
    assert describe_text_tower(model.to(torch.bfloat16)) != description
