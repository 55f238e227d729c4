"""OpenAI's .pt files: all nine architectures from their shapes, features as published, other models refused."""

import pytest
import torch

from clip_hf import ClipHfConfig, ClipHfModel
from clip_hf.conversion.layouts import foreign_names, tensor_shapes
from clip_hf.model.architectures_clip_hf import ARCHITECTURES
from clip_hf.model.openai_checkpoint_clip_hf import openai_architecture
from tests.model import published_clip
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
    assert model.config.name_or_path == str(path)
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
