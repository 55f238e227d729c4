"""Loading is complete or an error; saving is stable; nothing comes back uninitialised."""

import filecmp
import os
import socket
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForZeroShotImageClassification,
    CLIPConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from clip_hf import ClipHfModel, ClipHfResNetModel, ClipHfTextModel, ClipHfViTModel
from tests.conversion.tiny_checkpoints import write_all_layouts
from tests.open_clip_folders import custom_text, plain_weights, write_open_clip_folder
from tests.openai_weights import openai_weights, save_archive
from tests.tiny_models import TOWERS, random_ids, random_pixels, randomize_batch_norms, tiny_config, tiny_model

IMAGE_CLASSES = {"vit": ClipHfViTModel, "resnet": ClipHfResNetModel}


@pytest.fixture(params=TOWERS)
def checkpoint(request, tmp_path):
    model = tiny_model(request.param).eval()
    randomize_batch_norms(model)
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model", IMAGE_CLASSES[request.param]


def assert_same_folder(one, other):
    names = sorted(os.listdir(one))
    assert names == sorted(os.listdir(other))
    assert filecmp.cmpfiles(one, other, names, shallow=False)[0] == names


def test_save_load_save_is_byte_identical(checkpoint, tmp_path):
    _, folder, _ = checkpoint
    ClipHfModel.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert_same_folder(folder, tmp_path / "again")


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForZeroShotImageClassification])
def test_auto_classes_open_the_joint_model(checkpoint, auto_class):
    model, folder, _ = checkpoint
    loaded = auto_class.from_pretrained(folder)
    assert type(loaded) is ClipHfModel
    ids, pixels = random_ids(model.config), random_pixels(model.config)
    torch.testing.assert_close(loaded(ids, pixels).logits_per_image, model(ids, pixels).logits_per_image)


def test_nothing_comes_back_uninitialised(checkpoint):
    model, folder, _ = checkpoint
    loaded = ClipHfModel.from_pretrained(folder)
    expected = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_tower_opens_from_a_joint_checkpoint(checkpoint):
    model, folder, image_class = checkpoint
    ids, pixels = random_ids(model.config), random_pixels(model.config)
    image_tower, text_tower = image_class.from_pretrained(folder), ClipHfTextModel.from_pretrained(folder)
    assert torch.equal(image_tower(pixels).image_embeds, model.get_image_features(pixels).pooler_output)
    assert torch.equal(text_tower(ids).text_embeds, model.get_text_features(ids).pooler_output)


def test_tower_opens_without_its_projection(checkpoint):
    model, folder, image_class = checkpoint
    image_tower = image_class.from_pretrained(folder, projection_dim=None)
    text_tower = ClipHfTextModel.from_pretrained(folder, projection_dim=None)
    image, text = image_tower(random_pixels(model.config)), text_tower(random_ids(model.config))
    assert image.image_embeds is None
    assert text.text_embeds is None
    assert torch.equal(image.pooler_output, model.vision_model(random_pixels(model.config)).pooler_output)
    assert image.pooler_output.shape == (4, model.config.vision_config.hidden_size)
    assert text.pooler_output.shape == (4, model.config.text_config.hidden_size)


def test_saved_tower_opens_by_auto_model(checkpoint, tmp_path):
    model, folder, image_class = checkpoint
    image_class.from_pretrained(folder).save_pretrained(tmp_path / "tower")
    loaded = AutoModel.from_pretrained(tmp_path / "tower")
    assert type(loaded) is image_class
    pixels = random_pixels(model.config)
    assert torch.equal(loaded(pixels).image_embeds, model.get_image_features(pixels).pooler_output)


def write_layout(layout, tower, folder):
    """Returns a checkpoint in the names of one layout, and its weights in float32."""
    if layout == "openai":
        save_archive(openai_weights(tower), folder / "model.pt")
        return folder / "model.pt", plain_weights(tower)
    if layout.startswith("open_clip"):
        weights = custom_text(plain_weights(tower)) if layout.endswith("custom") else plain_weights(tower)
        return write_open_clip_folder(folder / layout, tower, weights), weights
    source = write_all_layouts(folder, tower)[layout]
    weights = load_file(source / "model.safetensors")
    return source, {name: w.float() if w.is_floating_point() else w for name, w in weights.items()}


@pytest.mark.parametrize(
    ("tower", "layout"),
    [(tower, layout) for tower in TOWERS for layout in ("clip_hf", "open_clip", "open_clip_custom", "openai")]
    + [("vit", "transformers")],
)
def test_original_format_has_the_names_and_the_values_that_were_read(tower, layout, tmp_path):
    source, weights = write_layout(layout, tower, tmp_path)
    is_image = {name: name.startswith(("vision_model.", "visual")) for name in weights}
    expected = {
        ClipHfModel: weights,
        ClipHfTextModel: {n: w for n, w in weights.items() if not is_image[n] and n != "logit_scale"},
        IMAGE_CLASSES[tower]: {n: w for n, w in weights.items() if is_image[n]},
    }
    for model_class, tensors in expected.items():
        if layout == "openai" and model_class is not ClipHfModel:
            continue  # such archives open as a whole
        load = model_class.from_openai if layout == "openai" else model_class.from_pretrained
        load(source, dtype=torch.float32).save_pretrained(tmp_path / "saved", save_original_format=True)
        saved = load_file(tmp_path / "saved" / "model.safetensors")
        assert saved.keys() == tensors.keys()
        assert [n for n in saved if saved[n].dtype != tensors[n].dtype or not torch.equal(saved[n], tensors[n])] == []
        model_class.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("reference_class", "model_class"),
    [
        (CLIPTextModel, ClipHfTextModel),
        (CLIPTextModelWithProjection, ClipHfTextModel),
        (CLIPVisionModel, ClipHfViTModel),
        (CLIPVisionModelWithProjection, ClipHfViTModel),
    ],
)
def test_original_format_of_a_transformers_tower_has_its_names(reference_class, model_class, tmp_path):
    joint = write_all_layouts(tmp_path, "vit")["transformers"]
    reference = reference_class.from_pretrained(joint, dtype=torch.float32)
    reference.save_pretrained(tmp_path / "tower")
    model = model_class.from_pretrained(tmp_path / "tower")
    model.save_pretrained(tmp_path / "saved", save_original_format=True)
    saved, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("saved", "tower"))
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in saved)


def test_original_format_of_a_model_that_was_never_read_is_ours(tmp_path):
    model = tiny_model("vit")
    model.save_pretrained(tmp_path, save_original_format=True)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_weight_is_an_error_that_names_it(checkpoint):
    _, folder, _ = checkpoint
    edit_weights(folder, lambda weights: weights.pop("text_model.projection.weight"))
    with pytest.raises(ValueError, match=r"missing weights \(1\): text_model\.projection\.weight"):
        ClipHfModel.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"missing weights \(1\): projection\.weight"):
        ClipHfTextModel.from_pretrained(folder)


def test_unexpected_weight_is_an_error_that_names_it(checkpoint):
    _, folder, image_class = checkpoint
    edit_weights(folder, lambda weights: weights.update({"vision_model.extra": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"unexpected weights \(1\): vision_model\.extra"):
        ClipHfModel.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"unexpected weights \(1\): extra"):
        image_class.from_pretrained(folder)
    ClipHfTextModel.from_pretrained(folder)  # the other half is none of the text tower's business


def test_asking_for_the_lists_gives_them_instead_of_the_error(checkpoint):
    _, folder, _ = checkpoint
    edit_weights(folder, lambda weights: weights.pop("logit_scale"))
    model, info = ClipHfModel.from_pretrained(folder, output_loading_info=True)
    assert info["missing_keys"] == {"logit_scale"}
    assert model.logit_scale.item() == pytest.approx(
        2.6593, abs=1e-4
    )  # drawn as at initialisation, not left as it was


def test_wrong_shape_is_an_error_that_names_it(checkpoint):
    _, folder, _ = checkpoint
    wrong = {"text_model.projection.weight": torch.zeros(5, 5), "logit_scale": torch.zeros(3)}  # read, not convertible
    edit_weights(folder, lambda weights: weights.update(wrong))
    message = (
        r"wrongly shaped weights \(2\): logit_scale, text_model\.projection\.weight \(\[5, 5\] instead of \[32, 64\]\)"
    )
    with pytest.raises(ValueError, match=message):
        ClipHfModel.from_pretrained(folder)
    _, info = ClipHfModel.from_pretrained(folder, output_loading_info=True)
    assert {name for name, *_ in info["mismatched_keys"]} == wrong.keys()
    model = ClipHfModel.from_pretrained(folder, ignore_mismatched_sizes=True)
    assert model.text_model.projection.weight.shape == (32, 64)
    assert model.logit_scale.item() == pytest.approx(2.6593, abs=1e-4)


@pytest.fixture(params=["clip_hf", "transformers"])
def folder_and_weights(request, tmp_path):
    paths = write_all_layouts(tmp_path, "vit")
    return paths[request.param], paths[request.param] / "model.safetensors"


def test_damaged_weights_are_an_error_that_names_the_file(folder_and_weights):
    folder, weights = folder_and_weights
    content = weights.read_bytes()
    for damaged in (content[:-1000], content[:4], b"\x89PNG\r\n\x1a\n" + bytes(99), b"version https://git-lfs.x\n"):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{weights} is (damaged or no checkpoint|a pointer of Git LFS)"):
            ClipHfModel.from_pretrained(folder)


def test_pickle_that_needs_more_than_tensors_is_an_error_that_names_the_file(folder_and_weights):
    folder, weights = folder_and_weights
    tensors = load_file(weights)
    weights.unlink()
    torch.save({"model": tensors, "more": Image.new("RGB", (1, 1))}, folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin needs more than tensors: it wants PIL.*trust_pickle=True"
    ):
        ClipHfModel.from_pretrained(folder)
    model = ClipHfModel.from_pretrained(folder, trust_pickle=True)
    assert model.logit_scale.item() == tensors["logit_scale"].item()


@pytest.mark.parametrize("content", ["[1]", "3", "null", '"model_type"'])
def test_config_json_of_no_configuration_is_an_error_that_names_it(content, folder_and_weights):
    folder, _ = folder_and_weights
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"the config\.json of {folder} is no configuration"):
        ClipHfModel.from_pretrained(folder)


def test_wrong_tower_class_is_an_error(checkpoint):
    _, folder, image_class = checkpoint
    (other,) = set(IMAGE_CLASSES.values()) - {image_class}
    with pytest.raises(ValueError, match="but the configuration says"):
        other.from_pretrained(folder)


def test_configuration_of_another_model_is_an_error_that_says_what_to_do(tmp_path):
    folder = write_all_layouts(tmp_path, "vit")["transformers"]
    with pytest.raises(ValueError, match="ClipHfModel needs a ClipHfConfig, but got a CLIPConfig: leave config out"):
        ClipHfModel.from_pretrained(folder, config=CLIPConfig.from_pretrained(folder))
    with pytest.raises(ValueError, match="ClipHfViTModel needs a ClipHfViTConfig, but got a ClipHfConfig"):
        ClipHfViTModel(tiny_config("vit"))


def test_a_file_is_an_error_that_names_the_way_to_open_it(tmp_path):
    save_archive(openai_weights("vit"), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt is a file.*ClipHfModel\.from_openai opens"):
        ClipHfModel.from_pretrained(tmp_path / "model.pt")


def test_device_map_splits_between_layers(checkpoint):
    model, folder, _ = checkpoint
    loaded = ClipHfModel.from_pretrained(folder, device_map="cpu")
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}
    assert "ClipHfTransformerLayer" in loaded._no_split_modules
    ids, pixels = random_ids(model.config), random_pixels(model.config)
    torch.testing.assert_close(loaded(ids, pixels).logits_per_image, model(ids, pixels).logits_per_image)


def test_model_offloaded_to_disk_gives_the_same_answers(checkpoint, tmp_path):
    model, folder, _ = checkpoint
    device_map = {"text_model": "cpu", "vision_model": "disk", "logit_scale": "cpu"}
    loaded = ClipHfModel.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path / "offload")
    ids, pixels = random_ids(model.config), random_pixels(model.config)
    torch.testing.assert_close(loaded(ids, pixels).logits_per_image, model(ids, pixels).logits_per_image)


ZERO3_ROUND_TRIP = """
import sys
import deepspeed, torch
from transformers.integrations import HfDeepSpeedConfig
from clip_hf import ClipHfModel, ClipHfResNetModel, ClipHfViTModel

source, target = sys.argv[1:]
deepspeed.init_distributed("gloo")
config = HfDeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}})
model = ClipHfModel.from_pretrained(source)
assert all(hasattr(parameter, "ds_shape") for parameter in model.parameters()), "ZeRO-3 did not partition"
with deepspeed.zero.GatheredParameters(list(model.parameters())):
    state_dict = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
model.save_pretrained(target, state_dict=state_dict)
torch.distributed.destroy_process_group()
"""


def run_zero3(code, *arguments):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "LOCAL_RANK": "0",
        "WORLD_SIZE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_load_and_save_under_zero3_is_byte_identical(checkpoint, tmp_path):
    pytest.importorskip("deepspeed")
    _, folder, _ = checkpoint
    run_zero3(ZERO3_ROUND_TRIP, folder, tmp_path / "zero3")
    assert_same_folder(folder, tmp_path / "zero3")


def test_checkpoint_of_a_newer_model_class_says_so(tmp_path):
    config = tiny_config("vit")
    config.format_version = 99
    with pytest.raises(ValueError, match="pip install --upgrade clip_hf"):
        type(config)(**config.to_dict())
