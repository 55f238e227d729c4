"""What compiles, exports and adapts: torch.compile without graph breaks, torch.export, ONNX, LoRA."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from clip_hf import ClipHfModel
from clip_hf.model.prefixes_clip_hf import find_distinct_prefixes, find_prefixes_of_each_text
from tests.tiny_models import TOWERS, random_ids, random_pixels, randomize_batch_norms, tiny_config, tiny_model


class ByPosition(torch.nn.Module):
    """An exporter sees named inputs and plain tensors."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, pixel_values):
        output = self.model(input_ids=input_ids, pixel_values=pixel_values)
        return output.image_embeds, output.text_embeds, output.logits_per_image


@pytest.fixture(params=TOWERS)
def model(request):
    model = tiny_model(request.param).eval()
    randomize_batch_norms(model)
    return model


def inputs(model, batch_size=4):
    return {
        "input_ids": random_ids(model.config, batch_size, seed=batch_size),
        "pixel_values": random_pixels(model.config, batch_size, seed=batch_size),
    }


def test_compiles_without_graph_breaks(model):
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    output, expected = compiled(**inputs(model), return_loss=True), model(**inputs(model), return_loss=True)
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.logits_per_image, expected.logits_per_image)


@pytest.mark.parametrize("find", [find_distinct_prefixes, find_prefixes_of_each_text])
def test_a_compiled_text_tower_takes_prefixes_of_any_number(find):
    torch.compiler.reset()
    plain, tower = tiny_model("vit").eval().text_model, tiny_model("vit").eval().text_model
    counter = CompileCounterWithBackend("aot_eager")
    tower.compile(backend=counter, fullgraph=True)
    for batch_size in range(4, 12):
        ids = random_ids(tiny_config("vit"), batch_size, seed=batch_size)
        ids[:, 1:4] = 5
        actual = tower(ids, prefixes=find(ids, tower.config.eos_token_id)).pooler_output
        torch.testing.assert_close(actual, plain(ids).pooler_output)
    assert counter.frame_count == 2  # for the first sizes, then for any


def test_compiled_training_step_gives_the_same_gradients(model):
    model.train()
    model(**inputs(model), return_loss=True).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs(model), return_loss=True).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_compiled_model_embeds_in_chunks(model):
    model.train()
    gradients, counter = [], CompileCounterWithBackend("aot_eager")
    for way in (model, torch.compile(model, backend=counter)):
        output = way(**inputs(model), chunk_sizes=(1, 1))
        (output.image_embeds[:, 0].sum() + output.text_embeds[:, 0].sum()).backward()
        learning = {name: parameter.grad for name, parameter in model.named_parameters() if name != "logit_scale"}
        gradients.append(learning)
        model.zero_grad()
    num_compiled = counter.frame_count
    batch = inputs(model)
    way(**batch | {"input_ids": batch["input_ids"].flip(0)}, chunk_sizes=(1, 1))  # other lengths in other places
    assert counter.frame_count == num_compiled > 0
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradient, gradients[0][name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_inductor_gives_the_same_embeddings(model):
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        output, expected = compiled(**inputs(model)), model(**inputs(model))
    torch.testing.assert_close(output.logits_per_image, expected.logits_per_image, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_program_takes_any_batch_size(model, strict):
    batch = torch.export.Dim("batch", min=2, max=64)
    example = inputs(model)
    exported = torch.export.export(
        ByPosition(model),
        tuple(example.values()),
        dynamic_shapes={"input_ids": {0: batch}, "pixel_values": {0: batch}},
        strict=strict,
    )
    for batch_size in (2, 7):
        other = inputs(model, batch_size)
        expected = ByPosition(model)(**other)
        for value, reference in zip(exported.module()(*other.values()), expected, strict=True):
            torch.testing.assert_close(value, reference)


@pytest.mark.parametrize("part", ["text_model", "vision_model"])
def test_a_tower_alone_compiles_and_exports(model, part):
    tower, name = getattr(model, part), "input_ids" if part == "text_model" else "pixel_values"
    compiled = torch.compile(tower, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(
        tower, (inputs(model)[name],), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},)
    )
    for batch_size in (4, 7):
        call = inputs(model, batch_size)[name]
        torch.testing.assert_close(compiled(call).pooler_output, tower(call).pooler_output)
        torch.testing.assert_close(exported.module()(call).pooler_output, tower(call).pooler_output)


def test_lora_trains_saves_loads_and_merges(model, tmp_path):
    peft = pytest.importorskip("peft")
    reference = {name: parameter.clone() for name, parameter in model.named_parameters()}
    targets = ["qkv", "out_proj", "q_proj", "k_proj", "v_proj"]
    targets += ["patch_embedding"] if model.config.vision_config.model_type == "clip_hf_vit" else []
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets))
    adapted.train()
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=10.0)
    for _ in range(2):  # the first step moves only the second matrix: the other starts at zero
        adapted(**inputs(model), return_loss=True).loss.backward()
        optimizer.step()
    adapted.eval()
    expected = adapted(**inputs(model)).logits_per_image
    adapted.save_pretrained(tmp_path / "adapter")

    base = tiny_model("vit" if model.config.vision_config.model_type == "clip_hf_vit" else "resnet").eval()
    base.load_state_dict({**base.state_dict(), **reference, **dict(model.named_buffers())}, strict=False)
    assert not torch.allclose(base(**inputs(model)).logits_per_image, expected, atol=1e-3)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(**inputs(model)).logits_per_image, expected)
    merged = loaded.merge_and_unload()
    assert type(merged) is ClipHfModel
    torch.testing.assert_close(merged(**inputs(model)).logits_per_image, expected, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    reopened = ClipHfModel.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(reopened(**inputs(model)).logits_per_image, merged(**inputs(model)).logits_per_image)


@pytest.mark.parametrize("part", ["text_model", "vision_model"])
def test_lora_on_one_tower(model, part, tmp_path):
    peft = pytest.importorskip("peft")
    tower, base = getattr(model, part), copy.deepcopy(getattr(model, part))
    call = inputs(model)["input_ids" if part == "text_model" else "pixel_values"]
    before = tower(call).pooler_output
    adapted = peft.get_peft_model(tower, peft.LoraConfig(r=2, target_modules=["out_proj", "q_proj"]))
    torch.testing.assert_close(adapted(call).pooler_output, before)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=100.0)
    for _ in range(2):  # the first step moves only the second matrix: the other starts at zero
        adapted(call).pooler_output[:, 0].sum().backward()
        optimizer.step()
    assert all("lora_" in name for name, parameter in adapted.named_parameters() if parameter.grad is not None)
    expected = adapted(call).pooler_output
    assert not torch.allclose(expected, before, atol=1e-3)
    adapted.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(loaded(call).pooler_output, expected)
    merged = loaded.merge_and_unload()
    assert type(merged) is type(getattr(model, part))
    torch.testing.assert_close(merged(call).pooler_output, expected, rtol=1e-4, atol=1e-4)


def onnx_case(model, part):
    tower = {"joint": model, "image": model.vision_model, "text": model.text_model}[part]
    names = {"joint": ("input_ids", "pixel_values"), "image": ("pixel_values",), "text": ("input_ids",)}[part]

    def inputs_of(batch_size, length):
        """As a tokenizer pads texts to the longest: it ends in the last column."""
        found = inputs(model, batch_size)
        found["input_ids"] = found["input_ids"][:, :length].clone()
        found["input_ids"][:, -1] = model.config.text_config.eos_token_id
        return {name: found[name] for name in names}

    return tower, inputs_of


@pytest.mark.parametrize("part", ["joint", *(pytest.param(p, marks=pytest.mark.slow) for p in ("image", "text"))])
def test_onnx_runtime_gives_the_same_embeddings(model, part):
    pytest.importorskip("onnxruntime")
    from transformers.exporters import OnnxConfig, OnnxExporter

    tower, inputs_of = onnx_case(model, part)
    longest = model.config.text_config.max_position_embeddings
    exported = OnnxExporter().export(tower, inputs_of(2, longest), config=OnnxConfig(dynamic=True))
    for batch_size, length in ((1, longest), (5, longest), (3, 5), (1, 2)):
        example = inputs_of(batch_size, length)
        with torch.no_grad():
            output, expected = exported(**example), tower(**example)
        for name in {"joint": ("image_embeds", "text_embeds", "logits_per_image")}.get(part, (f"{part}_embeds",)):
            torch.testing.assert_close(torch.as_tensor(output[name]), expected[name], rtol=1e-4, atol=1e-4)
