"""The models against references that are not ours: published formulas in float64, and transformers' CLIPModel."""

import copy

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from clip_hf import ClipHfConfig, ClipHfModel, ClipHfResNetModel, ClipHfTextModel, ClipHfViTModel
from clip_hf.model.architectures_clip_hf import ARCHITECTURES
from clip_hf.model.contrastive_loss_clip_hf import contrastive_loss
from tests.model import published_clip
from tests.tiny_models import TOWERS, random_ids, random_pixels, randomize_batch_norms, tiny_config, tiny_model

# Total, image tower, text side with the temperature, and tensors of the state dict, counted on OpenAI's own code.
PARAMETERS = {
    "RN50": (102_007_137, 38_316_896, 63_690_241, 489),
    "RN101": (119_688_033, 56_259_936, 63_428_097, 795),
    "RN50x4": (178_300_601, 87_137_080, 91_163_521, 669),
    "RN50x16": (290_979_217, 167_328_912, 123_650_305, 921),
    "RN50x64": (623_258_305, 420_380_352, 202_877_953, 1353),
    "ViT-B/32": (151_277_313, 87_849_216, 63_428_097, 302),
    "ViT-B/16": (149_620_737, 86_192_640, 63_428_097, 302),
    "ViT-L/14": (427_616_513, 303_966_208, 123_650_305, 446),
    "ViT-L/14@336px": (427_944_193, 304_293_888, 123_650_305, 446),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameter_count_of_released_architecture(name):
    with torch.device("meta"):
        model = ClipHfModel(ClipHfConfig.from_architecture(name))
    total = sum(parameter.numel() for parameter in model.parameters())
    image = sum(parameter.numel() for parameter in model.vision_model.parameters())
    assert (total, image, total - image, len(model.state_dict())) == PARAMETERS[name]


def openai_case(tower):
    """Returns a model loaded from random weights in OpenAI's layout, and those weights, all in float64."""
    torch.manual_seed(1)
    config = tiny_config(tower)
    text, vision = config.text_config, config.vision_config
    shape = (
        {"patch_size": vision.patch_size, "layers": vision.num_hidden_layers, "width": vision.hidden_size}
        if tower == "vit"
        else {"depths": vision.depths, "width": vision.width}
    )
    weights = published_clip.random_weights(
        config.projection_dim,
        text_width=text.hidden_size,
        text_layers=text.num_hidden_layers,
        vocab_size=text.vocab_size,
        positions=text.max_position_embeddings,
        grid=vision.grid_size,
        **shape,
    )
    extras = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    model = ClipHfModel.from_pretrained(None, config=config, state_dict=weights | extras, dtype=torch.float64)
    return model, weights


@pytest.mark.parametrize("tower", TOWERS)
def test_both_towers_equal_the_published_formulas_in_float64(tower):
    model, weights = openai_case(tower)
    pixels, ids = random_pixels(model.config).double(), random_ids(model.config)
    with torch.no_grad():
        output = model(input_ids=ids, pixel_values=pixels)
    image = published_clip.encode_image(weights, pixels, model.config.vision_config.num_attention_heads)
    text = published_clip.encode_text(weights, ids, model.config.text_config.num_attention_heads)
    image, text = image / image.norm(dim=1, keepdim=True), text / text.norm(dim=1, keepdim=True)
    torch.testing.assert_close(output.image_embeds, image, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.text_embeds, text, rtol=0, atol=1e-12)
    scale = torch.tensor(3.0).exp()
    torch.testing.assert_close(output.logits_per_image, (scale * image @ text.T), rtol=0, atol=1e-5)


def transformers_clip(text: dict, vision: dict, projection_dim: int) -> CLIPModel:
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection_dim)
    model = CLIPModel(config).eval()
    for parameter in model.parameters():  # biases of 0 and gains of 1 would hide errors
        if parameter.dim() == 1:
            parameter.data += torch.randn_like(parameter) * 0.1
    return model


TRANSFORMERS_CASES = {
    "small": (
        {"vocab_size": 99, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 16, "bos_token_id": 97, "eos_token_id": 98},
        {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3,
         "image_size": 32, "patch_size": 8},
        32,
    ),
    "ViT-B/32": ({}, {}, 512),
    "ViT-L/14": (
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
         "patch_size": 14},
        768,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ["small", "ViT-B/32", pytest.param("ViT-L/14", marks=pytest.mark.slow)])
def test_transformers_checkpoint_gives_equal_embeddings_and_gradients(case, tmp_path):
    reference = transformers_clip(*TRANSFORMERS_CASES[case])
    reference.save_pretrained(tmp_path)
    model = ClipHfModel.from_pretrained(tmp_path)
    ids, pixels = random_ids(model.config, batch_size=3), random_pixels(model.config, batch_size=3)
    expected = reference(input_ids=ids, pixel_values=pixels, return_loss=True)
    output = model(input_ids=ids, pixel_values=pixels, return_loss=True)
    torch.testing.assert_close(output.image_embeds, expected.image_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.text_embeds, expected.text_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=1e-5)
    expected.loss.backward()
    output.loss.backward()
    for ours, theirs in (("text_model", reference.text_model), ("vision_model", reference.vision_model)):
        compare_gradients(getattr(model, ours), theirs)
    torch.testing.assert_close(model.logit_scale.grad, reference.logit_scale.grad[None], rtol=1e-4, atol=1e-6)


def compare_gradients(tower, reference):
    """Gradients equal to 1e-4 of the tower's largest, under the names of both layouts."""
    theirs = {name: parameter.grad for name, parameter in reference.named_parameters()}
    largest = max(gradient.abs().max() for gradient in theirs.values())
    compared = 0
    for name, parameter in tower.named_parameters():
        if name.startswith("projection"):
            continue
        name = name.replace("layers.", "encoder.layers.").replace("pre_layernorm", "pre_layrnorm")
        name = name.replace("position_embedding", "position_embedding.weight")
        if ".qkv." in name:
            expected = torch.cat([theirs[name.replace("qkv", f"{part}_proj")] for part in "qkv"])
        else:
            expected = theirs[name]
        assert (parameter.grad - expected).abs().max() <= 1e-4 * largest, name
        compared += 1
    assert compared >= len(theirs) // 2


def test_transformers_tower_checkpoints_open_too(tmp_path):
    reference = transformers_clip(*TRANSFORMERS_CASES["small"])
    reference.vision_model.save_pretrained(tmp_path)
    tower = ClipHfViTModel.from_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(tower(pixels).pooler_output, reference.vision_model(pixels).pooler_output)
    assert tower(pixels).image_embeds is None


def test_legacy_end_of_text_id_of_transformers_is_corrected(tmp_path):
    reference = transformers_clip(*TRANSFORMERS_CASES["small"])
    reference.config.text_config.eos_token_id = 2
    reference.text_model.eos_token_id = 2
    reference.save_pretrained(tmp_path)
    model = ClipHfModel.from_pretrained(tmp_path)
    assert (model.config.text_config.bos_token_id, model.config.text_config.eos_token_id) == (97, 98)
    ids = random_ids(model.config)
    expected = reference.get_text_features(input_ids=ids).pooler_output
    torch.testing.assert_close(model.get_text_features(ids).pooler_output, expected)


@pytest.mark.parametrize("tower", TOWERS)
def test_one_modality_alone_feeds_the_feature_pipelines(tower):
    model = tiny_model(tower).eval()
    ids, pixels = random_ids(model.config), random_pixels(model.config)
    both = model(input_ids=ids, pixel_values=pixels)
    image, text = model(pixel_values=pixels), model(input_ids=ids)
    assert both.pooler_output is None
    assert both.last_hidden_state is None
    torch.testing.assert_close(image.pooler_output, model.get_image_features(pixels).pooler_output)
    torch.testing.assert_close(text.pooler_output, model.get_text_features(ids).pooler_output)
    torch.testing.assert_close(image.image_embeds, both.image_embeds)
    torch.testing.assert_close(text.text_embeds, both.text_embeds)
    assert image.text_embeds is None
    assert text[0].shape == (4, 16, 64)
    assert torch.equal(image[0], image.last_hidden_state)


@pytest.mark.parametrize("tower", TOWERS)
def test_return_dict_false_gives_the_same_values_as_a_tuple(tower):
    model = tiny_model(tower).eval()
    inputs = {"input_ids": random_ids(model.config), "pixel_values": random_pixels(model.config)}
    as_dict, as_tuple = model(**inputs, return_loss=True), model(**inputs, return_loss=True, return_dict=False)
    assert isinstance(as_tuple, tuple)
    torch.testing.assert_close(as_tuple[0], as_dict.loss)
    torch.testing.assert_close(as_tuple[1], as_dict.logits_per_image)
    chunks = model(**inputs, chunk_sizes=(2, 2))
    model.config.return_dict = False
    assert torch.equal(model(**inputs, return_loss=True)[1], as_tuple[1])
    assert torch.equal(model(**inputs, chunk_sizes=(2, 2))[0], chunks[0])


def test_loss_needs_both_modalities_and_forward_needs_one():
    model = tiny_model("vit")
    with pytest.raises(ValueError, match="needs both"):
        model(input_ids=random_ids(model.config), return_loss=True)
    with pytest.raises(ValueError, match="neither input_ids nor pixel_values"):
        model()


@pytest.mark.parametrize("tower", TOWERS)
def test_captured_outputs(tower):
    model = tiny_model(tower, attn_implementation="eager").eval()
    output = model(
        input_ids=random_ids(model.config),
        pixel_values=random_pixels(model.config),
        output_hidden_states=True,
        output_attentions=True,
    )
    text, image = output.text_model_output, output.vision_model_output
    assert len(text.hidden_states) == 3
    assert [weights.shape for weights in text.attentions] == [(4, 4, 16, 16)] * 2
    if tower == "vit":
        assert [state.shape for state in image.hidden_states] == [(4, 17, 48)] * 3
        assert [weights.shape for weights in image.attentions] == [(4, 3, 17, 17)] * 2
    else:
        assert len(image.hidden_states) == 6  # the stem's output and five blocks'
        assert [weights.shape for weights in image.attentions] == [(4, 4, 1, 5)]


@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
@pytest.mark.parametrize("tower", TOWERS)
def test_attention_implementations_agree_with_the_written_out_one(tower, implementation):
    if implementation == "flex_attention":
        pytest.importorskip("torch.nn.attention.flex_attention")
    reference = tiny_model(tower, attn_implementation="eager").eval()
    randomize_batch_norms(reference)
    model = tiny_model(tower, attn_implementation=implementation).eval()
    model.load_state_dict(reference.state_dict())
    ids, pixels = random_ids(model.config), random_pixels(model.config)
    with torch.no_grad():
        output, expected = model(ids, pixels), reference(ids, pixels)
    torch.testing.assert_close(output.image_embeds, expected.image_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(output.text_embeds, expected.text_embeds, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tower", TOWERS)
def test_uint8_pixels_are_normalised_by_the_model(tower):
    model = tiny_model(tower).eval()
    size = model.config.vision_config.image_size
    raw = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    mean = torch.tensor(model.config.vision_config.image_mean)[:, None, None]
    std = torch.tensor(model.config.vision_config.image_std)[:, None, None]
    expected = model.get_image_features((raw / 255 - mean) / std).pooler_output
    torch.testing.assert_close(model.get_image_features(raw).pooler_output, expected)


@pytest.mark.parametrize("tower", TOWERS)
def test_wrong_pixels_raise_with_the_way_out(tower):
    model = tiny_model(tower)
    size = model.config.vision_config.image_size
    with pytest.raises(ValueError, match=rf"\(96, 96\) pixels.*{size} x {size}.*interpolate_pos_encoding=True"):
        model.get_image_features(torch.randn(1, 3, 96, 96))
    with pytest.raises(ValueError, match=r"\(1, 1, \d+, \d+\), but must be \(batch, 3, height, width\)"):
        model.get_image_features(torch.randn(1, 1, size, size))
    with pytest.raises(ValueError, match=r"torch\.int64, but must be uint8"):
        model.get_image_features(torch.zeros(1, 3, size, size, dtype=torch.int64))


@pytest.mark.gpu
@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("tower", TOWERS)
def test_a_gpu_gives_the_embeddings_and_gradients_of_the_cpu(tower, is_compiled, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")  # as on a CPU
    model = tiny_model(tower).eval()
    randomize_batch_norms(model)
    on_gpu = copy.deepcopy(model).cuda()
    inputs = {"input_ids": random_ids(model.config), "pixel_values": random_pixels(model.config)}
    if is_compiled:
        on_gpu.compile()
    expected = model(**inputs, return_loss=True)
    expected.loss.backward()
    output = on_gpu(**{name: part.cuda() for name, part in inputs.items()}, return_loss=True)
    output.loss.backward()
    for name in ("image_embeds", "text_embeds", "logits_per_image", "loss"):
        torch.testing.assert_close(output[name].cpu(), expected[name], rtol=1e-4, atol=1e-4)
    for (name, ours), theirs in zip(on_gpu.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad.cpu(), theirs.grad, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.gpu
@pytest.mark.parametrize("chunk_sizes", [(None, None), (None, 100)])
def test_a_gpu_trains_on_hundreds_of_texts_as_the_cpu_does(chunk_sizes):
    model = tiny_model("vit").train()
    inputs = {"input_ids": random_ids(model.config, 300), "pixel_values": random_pixels(model.config, 300)}
    gradients = []
    for device in ("cpu", "cuda"):
        model.zero_grad()
        model.to(device)
        embeds = model(**{name: part.to(device) for name, part in inputs.items()}, chunk_sizes=chunk_sizes)
        contrastive_loss(embeds.image_embeds, embeds.text_embeds, embeds.scale).backward()
        gradients.append({name: parameter.grad.cpu() for name, parameter in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(
            gradients[1][name], expected, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(("chunk_size", "is_sorted"), [(None, [False]), (8, [False]), (4, [True, True])])
def test_only_the_texts_of_chunks_are_taken_for_sorted(chunk_size, is_sorted, monkeypatch):
    model, asked = tiny_model("vit").eval(), []
    monkeypatch.setattr(model.text_model, "find_prefixes", lambda ids, is_sorted: asked.append(is_sorted))
    with torch.no_grad():
        model(input_ids=random_ids(model.config, 8), chunk_sizes=(None, chunk_size))
    assert asked == is_sorted


@pytest.mark.gpu
@pytest.mark.parametrize("tower", TOWERS)
def test_bf16_on_a_gpu_gives_nearly_the_embeddings_of_float32(tower):
    model = tiny_model(tower).eval()
    inputs = {"input_ids": random_ids(model.config), "pixel_values": random_pixels(model.config)}
    with torch.no_grad():
        expected = model(**inputs)
        output = model.to("cuda", torch.bfloat16)(**{name: part.cuda() for name, part in inputs.items()})
    for name in ("image_embeds", "text_embeds"):
        assert output[name].dtype == torch.float32
        assert (output[name].cpu() * expected[name]).sum(dim=1).min() > 0.999


def test_bf16_model_keeps_temperature_and_embeddings_in_fp32(tmp_path):
    model = tiny_model("vit")
    model.logit_scale.data.fill_(4.6)  # bfloat16 would make it 4.59
    model.save_pretrained(tmp_path)
    loaded = ClipHfModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.logit_scale.dtype == torch.float32
    assert loaded.logit_scale.item() == model.logit_scale.item()
    assert loaded.vision_model.embeddings.patch_embedding.weight.dtype == torch.bfloat16
    output = loaded(random_ids(model.config), random_pixels(model.config))
    assert output.image_embeds.dtype == output.logits_per_image.dtype == output.scale.dtype == torch.float32
    torch.testing.assert_close(output.image_embeds.norm(dim=1), torch.ones(4))
    expected = model.eval()(random_ids(model.config), random_pixels(model.config))
    torch.testing.assert_close(output.image_embeds, expected.image_embeds, rtol=0, atol=2e-2)


def test_bf16_checkpoint_opens_as_bf16(tmp_path):
    tiny_model("vit").to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = ClipHfModel.from_pretrained(tmp_path)
    assert loaded.dtype == loaded.vision_model.dtype == torch.bfloat16
    assert loaded.logit_scale.dtype == torch.float32


def test_logits_stay_in_fp32_under_autocast():
    model = tiny_model("vit").eval()
    ids, pixels = random_ids(model.config), random_pixels(model.config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(ids, pixels, return_loss=True)
    expected = output.scale * output.image_embeds @ output.text_embeds.T
    torch.testing.assert_close(output.logits_per_image, expected, rtol=0, atol=0)
    assert output.loss.dtype == torch.float32


@pytest.mark.parametrize(("value", "gradient_sign", "passes"), [(5.0, -1, False), (5.0, 1, True), (4.0, -1, True)])
def test_scale_never_exceeds_100_and_can_come_back(value, gradient_sign, passes):
    model = tiny_model("vit")
    model.logit_scale.data.fill_(value)
    assert model.scale.item() <= 100
    assert model.scale.item() == pytest.approx(min(torch.tensor(value).exp().item(), 100), rel=1e-6)
    (gradient_sign * model.scale).sum().backward()
    assert (model.logit_scale.grad != 0).item() == passes


def _value(parameters, inputs, model):
    output = torch.func.functional_call(model, parameters, (), dict(inputs))
    return output.pooler_output.square().sum() if output.loss is None else output.loss


def _assert_gradients(found, model, inputs):
    parameters = dict(model.named_parameters())
    expected = torch.autograd.grad(_value({}, inputs, model), list(parameters.values()), materialize_grads=True)
    for name, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("value", [1.0, 5.0])  # of the temperature: below its bound and above
@pytest.mark.parametrize("tower", TOWERS)
def test_functional_gradients_are_those_of_the_backward_pass(tower, value):
    model = tiny_model(tower).double().eval()
    model.logit_scale.data.fill_(value)
    ids, pixels = random_ids(model.config), random_pixels(model.config).double()
    inputs = {"input_ids": ids, "pixel_values": pixels, "return_loss": True}
    found = torch.func.grad(_value)(dict(model.named_parameters()), inputs, model)
    _assert_gradients(found, model, inputs)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("names", [["pixel_values"], ["input_ids"], ["input_ids", "pixel_values", "return_loss"]])
@pytest.mark.parametrize("tower", TOWERS)
def test_gradients_of_each_sample_at_once_are_those_of_a_loop(tower, names):
    model = tiny_model(tower).double().eval()
    batch = {"input_ids": random_ids(model.config), "pixel_values": random_pixels(model.config).double()}
    batch = {name: tensor.unflatten(0, (2, 2)) for name, tensor in batch.items()} | {"return_loss": True}
    axes = {name: None if name == "return_loss" else 0 for name in names}
    inputs = {name: batch[name] for name in names}
    gradients = torch.func.vmap(torch.func.grad(_value), (None, axes, None))
    found = gradients(dict(model.named_parameters()), inputs, model)
    for index in range(2):
        sample = {name: inputs[name] if axis is None else inputs[name][index] for name, axis in axes.items()}
        _assert_gradients({name: gradient[index] for name, gradient in found.items()}, model, sample)


@pytest.mark.parametrize("part", ["joint", "text"])
def test_tokens_can_be_added(part, tmp_path):
    joint = tiny_model("vit").eval()
    ids, model = random_ids(joint.config), joint if part == "joint" else joint.text_model
    before = model.config.get_text_config().vocab_size
    features = (model.get_text_features if part == "joint" else model)(ids).pooler_output
    model.resize_token_embeddings(before + 3)
    assert model.config.get_text_config().vocab_size == before + 3
    model.save_pretrained(tmp_path)
    opened = type(model).from_pretrained(tmp_path)
    assert torch.equal(opened.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert torch.equal((opened.get_text_features if part == "joint" else opened)(ids).pooler_output, features)


def test_input_embeddings_are_those_of_each_tower():
    model = tiny_model("resnet")
    assert model.get_input_embeddings() is model.text_model.embeddings.token_embedding
    assert isinstance(model.vision_model, ClipHfResNetModel)
    assert isinstance(model.text_model, ClipHfTextModel)
    assert model.vision_model.get_input_embeddings() is model.vision_model.stem.conv1


@pytest.mark.parametrize("tower", TOWERS)
def test_image_features_alone_are_the_same(tower):
    model = tiny_model(tower).double().eval()
    randomize_batch_norms(model)
    pixels, gradients = random_pixels(model.config).double(), []
    expected = model.vision_model(pixels)
    for options in ({}, {"pooled_only": True}):
        model.zero_grad()
        output = model.vision_model(pixels, **options)
        assert (output.last_hidden_state is None) == bool(options)
        torch.testing.assert_close(output.image_embeds, expected.image_embeds, rtol=0, atol=1e-12)
        torch.testing.assert_close(output.pooler_output, expected.pooler_output, rtol=0, atol=1e-12)
        (output.image_embeds * torch.linspace(-1, 1, 32)).sum().backward()
        gradients.append([parameter.grad for parameter in model.vision_model.parameters()])
    for found, gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(found, gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize(
    ("modality", "name"),
    [("input_ids", "pixel_value"), ("input_ids", "position_ids"), ("pixel_values", "return_los"),
     ("input_ids", "inputs_embeds")],
)  # fmt: skip
def test_an_argument_that_nothing_reads_is_an_error_that_names_it(tower, modality, name):
    model = tiny_model(tower)
    inputs = {"input_ids": random_ids(model.config), "pixel_values": random_pixels(model.config)}
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        model(**{modality: inputs[modality], name: torch.zeros(1)})


@pytest.mark.parametrize("tower", TOWERS)
def test_what_transformers_passes_to_any_model_changes_nothing(tower):
    model = tiny_model(tower).eval()
    inputs = {"input_ids": random_ids(model.config), "pixel_values": random_pixels(model.config)}
    mask = torch.ones_like(inputs["input_ids"])
    passed = {"inputs_embeds": None, "token_type_ids": mask, "num_items_in_batch": mask, "use_cache": False}
    output = model(**inputs, attention_mask=mask, output_attentions=False, **passed)
    assert torch.equal(output.logits_per_image, model(**inputs).logits_per_image)


def test_attention_mask_of_another_shape_is_an_error_with_both_shapes():
    model = tiny_model("vit")
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 7\), but input_ids \(4, 16\)"):
        model(random_ids(model.config), attention_mask=torch.ones(2, 7))
