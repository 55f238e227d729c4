"""OpenAI's .pt files: all nine architectures from their shapes, features as published, other models refused."""

import pytest
import torch

from clip_hf import ClipHfConfig, ClipHfModel
from clip_hf.conversion.layouts import foreign_names, tensor_shapes
from clip_hf.model import openai_checkpoint_clip_hf
from clip_hf.model.architectures_clip_hf import ARCHITECTURES
from clip_hf.model.openai_checkpoint_clip_hf import openai_architecture
from tests.model import published_clip
from tests.open_clip_folders import plain_weights, write_open_clip_folder
from tests.openai_weights import openai_weights, save_archive
from tests.tiny_models import TOWERS, random_ids, random_pixels


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_released_architecture_is_read_from_the_shapes(name):
    expected = ClipHfConfig.from_architecture(name)
    weights = {}
    for ours, shape in tensor_shapes(expected).items():
        (theirs,) = foreign_names(ours, "openai", expected)
        is_projection = ours.endswith("model.projection.weight") and "c_proj" not in theirs
        weights[theirs] = torch.empty(shape[::-1] if is_projection else shape, dtype=torch.float16, device="meta")
    config = ClipHfConfig(**openai_architecture(weights))
    assert config.to_dict() == expected.to_dict() | {"dtype": "float16"}


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("kind", ["archive", "state dict"])
def test_features_are_the_published_formulas(tower, kind, tmp_path):
    weights, path = openai_weights(tower), tmp_path / "clip.pt"
    save_archive(weights, path) if kind == "archive" else torch.save(weights, path)
    model = ClipHfModel.from_openai(path, dtype=torch.float64)
    assert model.name_or_path == model.config.name_or_path == str(path)
    pixels, ids = random_pixels(model.config).double(), random_ids(model.config)
    weights = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    with torch.no_grad():
        images, texts = model.get_image_features(pixels).pooler_output, model.get_text_features(ids).pooler_output
    heads = model.config.vision_config.num_attention_heads
    torch.testing.assert_close(images, published_clip.encode_image(weights, pixels, heads), rtol=0, atol=1e-12)
    torch.testing.assert_close(texts, published_clip.encode_text(weights, ids, 1), rtol=0, atol=1e-12)


def test_model_has_the_type_of_the_file_unless_told_otherwise(tmp_path):
    torch.save(openai_weights("vit"), tmp_path / "clip.pt")
    assert ClipHfModel.from_openai(tmp_path / "clip.pt").dtype == torch.float16
    assert ClipHfModel.from_openai(tmp_path / "clip.pt", dtype="float32").dtype == torch.float32


def edited(edit):
    weights = openai_weights("vit")
    edit(weights)
    return weights


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda w: w.pop("token_embedding.weight"), "no token_embedding.weight among the"),
        (lambda w: w.pop("visual.conv1.weight"), "no visual.conv1.weight among"),
        (lambda w: w.pop("ln_final.bias"), r"missing weights \(1\): text_model.final_layer_norm.bias"),
        (lambda w: w.update({"visual.more": torch.ones(1)}), r"unexpected weights \(1\)"),
        (lambda w: w.update(input_resolution=torch.tensor(224)), "says input_resolution 224, but its weights .* 32"),
        (lambda w: w.update(vocab_size=torch.tensor(49408)), "says vocab_size 49408, but its weights .* 530"),
        (lambda w: w.update({"visual.positional_embedding": torch.ones(18, 64)}), "18 rows.*square"),
        (lambda w: w.update({"text_projection": torch.ones(64)}), r"text_projection has shape \(64,\)"),
        (lambda w: w.update({"transformer.resblocks.5.ln_1.bias": torch.ones(64)}), r"blocks \['0', '1', '5'\]"),
        (lambda w: w.update({"logit_bias": torch.ones(())}), "SigLIP"),
        (lambda w: w.update({"text_decoder.ln_final.bias": torch.ones(1)}), "CoCa"),
        (lambda w: w.update({"audio.conv.weight": torch.ones(1)}), "audio model"),
        (lambda w: w.update({"visual.trunk.pos_embed": torch.ones(1)}), "timm.*EVA.*NaFlex"),
        (lambda w: w.update({"text.transformer.embeddings.x": torch.ones(1)}), "text tower of transformers"),
        (lambda w: w.update({"text.transformer.resblocks.0.ln_1.bias": torch.ones(1)}), "custom-text layout"),
        (lambda w: w.update(state_dict={}), "training checkpoint.*open_clip_pytorch_model.bin"),
        (lambda w: w.update({"visual.blocks.0.attn.q_bias": torch.ones(1)}), "EVA-CLIP"),
        (lambda w: w.update({"visual.cls_token": torch.ones(1)}), "EVA-CLIP"),
        (lambda w: w.update({"audio_branch.conv.weight": torch.ones(1)}), "audio model"),
        (lambda w: w.update(epoch=3), "holds a int under the name 'epoch'"),
        (lambda w: w.update({"visual.proj": 0.5}), "holds a float under the name 'visual.proj'"),
        (lambda w: w.update({7: torch.ones(1)}), "holds a Tensor under the name 7"),
        (lambda w: w.update(context_length=torch.ones(2)), r"says context_length \[1.0, 1.0\], but"),
    ],
)
def test_what_is_no_clip_of_openai_is_refused_by_name(weights, message, tmp_path):
    torch.save(edited(weights), tmp_path / "clip.pt")
    with pytest.raises(ValueError, match=rf"clip\.pt.*{message}"):
        ClipHfModel.from_openai(tmp_path / "clip.pt")


def test_checkpoint_of_transformers_in_a_pt_file_is_refused_by_name(tmp_path):
    torch.save({"text_model.embeddings.token_embedding.weight": torch.ones(2, 2)}, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match=r"model of transformers.*config\.json"):
        ClipHfModel.from_openai(tmp_path / "clip.pt")


def test_weights_inside_the_checkpoint_of_a_training_are_found(tmp_path):
    weights = openai_weights("vit")
    for wrapper in ("model_state_dict", "model"):
        content = {"epoch": 3, wrapper: {f"module.{name}": tensor for name, tensor in weights.items()}, "loss": 0.5}
        torch.save(content, tmp_path / f"{wrapper}.pt")
        model = ClipHfModel.from_openai(tmp_path / f"{wrapper}.pt")
        assert torch.equal(model.text_model.final_layer_norm.bias, weights["ln_final.bias"].half())


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "open_clip_model.safetensors", "beside.pt"])
def test_file_of_open_clips_is_refused_because_its_activation_is_not_in_it(name, tmp_path):
    folder = write_open_clip_folder(tmp_path / "gelu", pickled=name.endswith(".bin"), quick_gelu=False)
    if name == "beside.pt":
        torch.save(plain_weights("vit"), folder / name)
    with pytest.raises(ValueError, match=rf"{name} is a file of OpenCLIP's, whose activation only open_clip_config"):
        ClipHfModel.from_openai(folder / name)


def test_what_the_weights_do_not_tell_is_assumed_aloud(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(openai_checkpoint_clip_hf.logger, "warning_once", warnings.append)
    torch.save(openai_weights("vit"), tmp_path / "sure.pt")
    ClipHfModel.from_openai(tmp_path / "sure.pt")
    assert warnings == []
    torch.save(plain_weights("vit"), tmp_path / "plain.pt")
    ClipHfModel.from_openai(tmp_path / "plain.pt")
    assert len(warnings) == 1
    assert f"{tmp_path / 'plain.pt'} holds weights without the three numbers" in warnings[0]
    assert "QuickGELU and heads of 64 channels, which OpenAI's models have, are ASSUMED" in warnings[0]
