"""OpenCLIP's folders: model, towers, tokenizer, image processor, processor open; other kinds are refused by name."""

import json

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessorPil, CLIPProcessor

from clip_hf import (
    ClipHfConfig,
    ClipHfImageProcessor,
    ClipHfModel,
    ClipHfProcessor,
    ClipHfResNetModel,
    ClipHfTextModel,
    ClipHfTokenizer,
    ClipHfViTModel,
)
from clip_hf.model.open_clip_checkpoint_clip_hf import open_clip_image_options, translate_open_clip_config
from tests.model import published_clip
from tests.open_clip_folders import (
    clip_tokenizer,
    custom_text,
    open_clip_config,
    plain_weights,
    small_tokenizer,
    write_open_clip_folder,
)
from tests.tiny_models import TOWERS, random_ids, random_pixels


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("layout", [dict, custom_text])
@pytest.mark.parametrize("pickled", [False, True])
def test_features_are_the_published_formulas(tower, layout, pickled, tmp_path):
    weights = plain_weights(tower, torch.float64)
    folder = write_open_clip_folder(tmp_path / "model", tower, layout(weights), pickled)
    model = ClipHfModel.from_pretrained(folder)
    pixels, ids = random_pixels(model.config).double(), random_ids(model.config)
    with torch.no_grad():
        images, texts = model.get_image_features(pixels).pooler_output, model.get_text_features(ids).pooler_output
    heads = model.config.vision_config.num_attention_heads
    torch.testing.assert_close(images, published_clip.encode_image(weights, pixels, heads), rtol=0, atol=1e-12)
    torch.testing.assert_close(texts, published_clip.encode_text(weights, ids, 1), rtol=0, atol=1e-12)
    assert model.name_or_path == model.config.name_or_path == str(folder)


def test_the_checkpoint_of_a_training_run_opens_as_bin(tmp_path):
    weights = plain_weights("vit")
    for wrapper in ("state_dict", "model_state_dict", "model"):
        content = {"epoch": 3, "name": "x", wrapper: {f"module.{name}": weights[name] for name in weights}}
        folder = write_open_clip_folder(tmp_path / wrapper, weights=content, pickled=True)
        assert torch.equal(ClipHfModel.from_pretrained(folder).logit_scale, weights["logit_scale"][None])


@pytest.mark.parametrize(
    ("content", "message"), [([1], "holds a list"), ({"state_dict": {"logit_scale": 2.5}}, "holds a float under")]
)
def test_what_is_no_state_dict_is_an_error(content, message, tmp_path):
    folder = write_open_clip_folder(tmp_path / "model", weights=content, pickled=True)
    with pytest.raises(ValueError, match=rf"open_clip_pytorch_model\.bin.*{message}"):
        ClipHfModel.from_pretrained(folder)


def test_a_pickle_of_more_than_tensors_opens_if_it_is_trusted(tmp_path):
    content = {"state_dict": plain_weights("vit"), "optimizer": Image.new("RGB", (1, 1))}
    folder = write_open_clip_folder(tmp_path / "model", weights=content, pickled=True)
    with pytest.raises(ValueError, match=r"needs more than tensors.*trust_pickle=True"):
        ClipHfModel.from_pretrained(folder)
    model = ClipHfModel.from_pretrained(folder, trust_pickle=True)
    assert torch.equal(model.logit_scale, plain_weights("vit")["logit_scale"][None])


@pytest.mark.parametrize("name", ["no/such/folder", "./no", "/no", "models/ViT-B-32.pt"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(name):
    with pytest.raises(FileNotFoundError, match=f"{name} is not there"):
        ClipHfModel.from_pretrained(name)


@pytest.mark.parametrize("tower", TOWERS)
def test_towers_open_alone(tower, tmp_path):
    folder = write_open_clip_folder(tmp_path / "model", tower)
    model = ClipHfModel.from_pretrained(folder)
    image_class = ClipHfViTModel if tower == "vit" else ClipHfResNetModel
    pixels, ids = random_pixels(model.config), random_ids(model.config)
    images, texts = image_class.from_pretrained(folder)(pixels), ClipHfTextModel.from_pretrained(folder)(ids)
    assert torch.equal(images.image_embeds, model.get_image_features(pixels).pooler_output)
    assert torch.equal(texts.text_embeds, model.get_text_features(ids).pooler_output)
    assert ClipHfTextModel.from_pretrained(folder, projection_dim=None).projection is None


def test_arguments_of_from_pretrained_reach_configuration_and_model(tmp_path):
    folder = write_open_clip_folder(tmp_path / "model")
    model = ClipHfModel.from_pretrained(folder, dtype=torch.bfloat16, vision_config={"image_size": 64})
    assert model.config.vision_config.image_size == 64
    assert model.vision_model.embeddings.position_embedding.shape == (65, 64)
    assert model.vision_model.embeddings.position_embedding.dtype == torch.bfloat16
    _, info = ClipHfModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]


def test_saved_again_it_is_a_checkpoint_of_ours(tmp_path):
    folder = write_open_clip_folder(tmp_path / "model")
    model = ClipHfModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "ours")
    ours = ClipHfModel.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("quick_gelu", "hidden_act"), [(True, "quick_gelu"), (False, "gelu"), (None, "gelu")])
def test_activation_is_the_one_that_the_configuration_says(quick_gelu, hidden_act, tmp_path):
    content = open_clip_config("vit", quick_gelu=quick_gelu)
    config = ClipHfConfig(**translate_open_clip_config(content))
    assert config.text_config.hidden_act == config.vision_config.hidden_act == hidden_act


def test_gelu_is_torchs(tmp_path, monkeypatch):
    folder = write_open_clip_folder(tmp_path / "model", quick_gelu=False)
    model = ClipHfModel.from_pretrained(folder)
    ids = random_ids(model.config)
    monkeypatch.setattr(torch, "sigmoid", lambda x: nn.functional.gelu(x / 1.702) / (x / 1.702))  # x s(1.702 x) = gelu
    expected = published_clip.encode_text(plain_weights("vit"), ids, 1)
    torch.testing.assert_close(model.get_text_features(ids).pooler_output, expected, rtol=0, atol=1e-4)


def test_sizes_that_are_not_the_published_ones():
    """ViT-bigG/14 has heads of 104 channels and an MLP of 4.9231 times the width."""
    content = open_clip_config("vit")
    content["model_cfg"]["vision_cfg"] |= {"width": 1664, "head_width": 104, "mlp_ratio": 4.9231}
    config = ClipHfConfig(**translate_open_clip_config(content)).vision_config
    assert (config.num_attention_heads, config.intermediate_size) == (16, 8192)


def test_defaults_are_open_clips():
    """A configuration may leave out what open_clip's classes have as defaults."""
    content = {"model_cfg": {"embed_dim": 512, "vision_cfg": {}, "text_cfg": {}}}
    assert translate_open_clip_config(content) == {
        "model_type": "clip_hf",
        "projection_dim": 512,
        "text_config": {
            "projection_dim": 512,
            "vocab_size": 49408, "max_position_embeddings": 77, "hidden_size": 512, "intermediate_size": 2048,
            "num_hidden_layers": 12, "num_attention_heads": 8, "hidden_act": "gelu",
        },
        "vision_config": {
            "projection_dim": 512,
            "model_type": "clip_hf_vit", "image_size": 224, "patch_size": 16, "hidden_size": 768,
            "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "gelu",
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("", {"multimodal_cfg": {"width": 512}}, "a CoCa model"),
        ("", {"audio_cfg": {"width": 512}}, "an audio model"),
        ("", {"init_logit_bias": -10}, "a SigLIP model"),
        ("", {"vision_decoder_cfg": {"x": 1}}, "a model with vision_decoder_cfg"),
        ("vision_cfg", {"timm_model_name": "eva02_base_patch16_clip_224"}, "an EVA image tower"),
        ("vision_cfg", {"timm_model_name": "naflexvit_base_patch16"}, "a NaFlex image tower"),
        ("vision_cfg", {"timm_model_name": "convnext_base"}, "a timm image tower .*convnext_base"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "text tower of transformers .*roberta-base"),
        ("vision_cfg", {"attentional_pool": True}, "vision_cfg.attentional_pool=True"),
        ("vision_cfg", {"pool_type": "avg"}, "vision_cfg.pool_type='avg'"),
        ("vision_cfg", {"no_ln_pre": True}, "vision_cfg.no_ln_pre=True"),
        ("vision_cfg", {"norm_kwargs": {"eps": 1e-6}}, "vision_cfg.norm_kwargs="),
        ("text_cfg", {"no_causal_mask": True}, "text_cfg.no_causal_mask=True"),
        ("text_cfg", {"pool_type": "last"}, "text_cfg.pool_type='last'"),
        ("text_cfg", {"embed_cls": True}, "text_cfg.embed_cls=True"),
        ("vision_cfg", {"image_size": [224, 336]}, r"image_size or patch_size \[224, 336\].*square"),
    ],
)
def test_other_kinds_are_refused_by_name(part, fields, message, tmp_path):
    folder = write_open_clip_folder(tmp_path / "model")
    content = open_clip_config("vit")
    (content["model_cfg"][part] if part else content["model_cfg"]).update(fields)
    (folder / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        ClipHfModel.from_pretrained(folder)


def test_fields_without_effect_on_the_model_are_accepted():
    content = open_clip_config("vit", custom_text=True)
    content["model_cfg"]["vision_cfg"] |= {"patch_dropout": 0.5, "pool_type": "tok", "ls_init_value": None}
    content["model_cfg"]["text_cfg"] |= {
        "hf_tokenizer_name": "x/y",
        "tokenizer_kwargs": {"clean": "lower"},
        "eos_id": 2,
    }
    assert translate_open_clip_config(content) == translate_open_clip_config(open_clip_config("vit"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "Expecting value"),
        ("[]", r"the file is \[\], but OpenCLIP has an object there"),
        ("{}", "model_cfg is None"),
        ('{"model_cfg": {"vision_cfg": {}, "text_cfg": {}}}', "embed_dim is None, but .* a whole number above 0"),
        ('{"model_cfg": {"embed_dim": 8, "vision_cfg": 3, "text_cfg": {}}}', "vision_cfg is 3"),
        ('{"model_cfg": {"embed_dim": 8, "vision_cfg": {}}}', "text_cfg is None"),
        ('{"model_cfg": {"embed_dim": 8, "text_cfg": {}, "audio_cfg": {"model_type": "HTSAT"}}}', "an audio model"),
    ],
)
def test_broken_configuration_is_an_error_that_names_it(content, message, tmp_path):
    (tmp_path / "open_clip_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"open_clip_config\.json: .*{message}"):
        ClipHfModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("", {"embed_dim": "32"}, "embed_dim is '32'"),
        ("", {"init_logit_scale": "x"}, "init_logit_scale is 'x'"),
        ("vision_cfg", {"width": "64"}, "vision_cfg.width is '64', but OpenCLIP has a whole number above 0"),
        ("vision_cfg", {"head_width": 0}, "vision_cfg.head_width is 0"),
        ("vision_cfg", {"patch_size": None}, "vision_cfg.patch_size is None"),
        ("vision_cfg", {"layers": []}, r"vision_cfg.layers is \[\]"),
        ("vision_cfg", {"layers": [1, True]}, r"vision_cfg.layers is \[1, True\]"),
        ("text_cfg", {"mlp_ratio": None}, "text_cfg.mlp_ratio is None, but OpenCLIP has a number above 0"),
        ("text_cfg", {"layers": [2]}, r"text_cfg.layers is \[2\]"),
        ("text_cfg", {"heads": 1.5}, "text_cfg.heads is 1.5"),
        ("text_cfg", {"tokenizer_kwargs": {"clean": "canonicalize"}}, "text_cfg.tokenizer_kwargs={'clean': 'canon"),
        ("text_cfg", {"tokenizer_mode": "clips"}, "text_cfg.tokenizer_mode='clips'"),
        ("preprocess_cfg", [1], r"preprocess_cfg is \[1\]"),
        ("preprocess_cfg", {"mean": "x"}, "preprocess_cfg.mean is 'x', but OpenCLIP has a list of three numbers"),
        ("preprocess_cfg", {"std": [1, 2]}, r"preprocess_cfg.std is \[1, 2\]"),
    ],
)
def test_wrong_field_is_named_whoever_reads_it(part, fields, message, tmp_path):
    folder = write_open_clip_folder(tmp_path / "model")
    content = open_clip_config("vit")
    if part == "preprocess_cfg":
        content[part] = fields
    else:
        (content["model_cfg"][part] if part else content["model_cfg"]).update(fields)
    (folder / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    for opener in (ClipHfModel, ClipHfImageProcessor, ClipHfTokenizer):
        with pytest.raises(ValueError, match=rf"open_clip_config\.json: .*{message}"):
            opener.from_pretrained(folder)


def test_missing_weights_are_an_error(tmp_path):
    folder = write_open_clip_folder(tmp_path / "model")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"none of open_clip_model\.safetensors, open_clip_pytorch_model\.bin"):
        ClipHfModel.from_pretrained(folder)


def test_processor_and_its_parts(tmp_path):
    folder = write_open_clip_folder(tmp_path / "model")
    processor = ClipHfProcessor.from_pretrained(folder)
    assert type(processor.image_processor) is ClipHfImageProcessor
    assert type(processor.tokenizer) is ClipHfTokenizer
    assert processor.tokenizer.model_max_length == 16
    options = ClipHfImageProcessor.from_pretrained(folder).to_dict()
    assert options["size"] == {"shortest_edge": 32}
    assert options["crop_size"] == {"height": 32, "width": 32}
    assert (options["resample"], tuple(options["image_mean"])) == (Image.Resampling.BILINEAR, (0.5, 0.4, 0.3))
    config = ClipHfConfig.from_pretrained(folder)
    assert (config.vision_config.image_mean, config.vision_config.image_std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    inputs = processor(images=Image.new("RGB", (50, 40)), text=["a dog"], return_tensors="pt")
    ClipHfModel.from_pretrained(folder)(**inputs)


def test_squashed_pictures_keep_no_aspect_ratio():
    content = open_clip_config("vit")
    content["preprocess_cfg"]["resize_mode"] = "squash"
    assert open_clip_image_options(content)["size"] == {"height": 32, "width": 32}
    content["preprocess_cfg"]["resize_mode"] = "longest"
    with pytest.raises(ValueError, match="resize_mode 'longest'"):
        open_clip_image_options(content)


def test_without_preprocess_cfg_pictures_are_prepared_as_published():
    content = open_clip_config("vit")
    del content["preprocess_cfg"]
    assert ClipHfImageProcessor(**open_clip_image_options(content)).to_dict() == (
        ClipHfImageProcessor(size=32, crop_size=32).to_dict()
    )


def test_config_json_of_timm_beside_it_does_not_hide_it(tmp_path):
    folder = write_open_clip_folder(tmp_path / "model")
    (folder / "config.json").write_text('{"architecture": "vit_base_patch32_clip_224", "num_classes": 0}')
    assert ClipHfModel.from_pretrained(folder).config.text_config.vocab_size == 530


@pytest.mark.parametrize("parts", ["processor", "image processor and tokenizer"])
def test_transformers_folder_gives_our_processor(parts, tmp_path):
    peer = CLIPProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32), clip_tokenizer(small_tokenizer())
    )
    for part in [peer] if parts == "processor" else [peer.image_processor, peer.tokenizer]:
        part.save_pretrained(tmp_path)
    processor = ClipHfProcessor.from_pretrained(tmp_path)
    assert (type(processor.image_processor), type(processor.tokenizer)) == (ClipHfImageProcessor, ClipHfTokenizer)
    picture = Image.linear_gradient("L").convert("RGB")
    expected = peer(images=picture, text="a photo of a cat", return_tensors="pt")
    found = processor(images=picture, text="a photo of a cat", return_tensors="pt")
    assert torch.equal(found["input_ids"], expected["input_ids"])
    torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-5)
