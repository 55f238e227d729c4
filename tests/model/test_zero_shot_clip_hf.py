"""The classifier against plain formulas, one prompt at a time, and against the models' own logits."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from transformers import SiglipConfig, SiglipModel

from clip_hf import ClipHfModel
from clip_hf.model import zero_shot_clip_hf
from clip_hf.model.zero_shot_clip_hf import ZeroShotClassifier, embed_texts
from tests.model.tiny_zero_shot import (
    CONTEXT_LENGTH,
    NAMES,
    TEMPLATES,
    plain_text_embeds,
    tiny_tokenizer,
    tiny_transformers_model,
    tiny_zero_shot_model,
)
from tests.tiny_models import TOWERS, random_pixels


@pytest.fixture(scope="module", params=TOWERS)
def model(request):
    return tiny_zero_shot_model(request.param)


@pytest.fixture
def vit():
    return tiny_zero_shot_model("vit")


def make(model, names=NAMES, **kwargs):
    return ZeroShotClassifier.from_class_names(model, tiny_tokenizer(), names, **kwargs)


def expected_logits(model, pixels, names=NAMES, template="a photo of a {}."):
    ids = tiny_tokenizer()([template.format(name) for name in names], padding=True, return_tensors="pt").input_ids
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels).logits_per_image


@pytest.mark.parametrize(("batch_size", "sorted_batches"), [(1, 64), (2, 1), (4, 64), (256, 64)])
def test_weights_are_the_mean_of_each_prompt_on_its_own(model, batch_size, sorted_batches, monkeypatch):
    monkeypatch.setattr(zero_shot_clip_hf, "SORTED_BATCHES", sorted_batches)
    weights = make(model, templates=TEMPLATES, batch_size=batch_size).weights
    for name, weight in zip(NAMES, weights, strict=True):
        mean = plain_text_embeds(model, [template.format(name) for template in TEMPLATES]).mean(dim=0)
        torch.testing.assert_close(weight, mean / mean.norm(), rtol=0, atol=1e-6)


def test_every_pass_is_as_wide_as_its_longest_prompt(vit, monkeypatch):
    texts = [" ".join(["dog"] * count) for count in (9, 1, 5, 2, 7, 3, 8, 4)]
    passes, original = [], vit.get_text_features

    def spy(input_ids, **options):
        passes.append(input_ids)
        return original(input_ids, **options)

    monkeypatch.setattr(vit, "get_text_features", spy)
    monkeypatch.setattr(zero_shot_clip_hf, "TEXTS_PER_PASS", 4)
    by_default = embed_texts(vit, tiny_tokenizer(), texts)
    embeds = embed_texts(vit, tiny_tokenizer(), texts, batch_size=2)
    monkeypatch.undo()
    lengths = sorted(len(ids) for ids in tiny_tokenizer()(texts)["input_ids"])
    expected = [(4, longest) for longest in lengths[3::4]] + [(2, longest) for longest in lengths[1::2]]
    assert [tuple(ids.shape) for ids in passes] == expected
    torch.testing.assert_close(by_default, embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(embeds, plain_text_embeds(vit, texts), rtol=0, atol=1e-6)


def test_what_texts_share_is_computed_once(vit):
    rows = []
    vit.text_model.layers[0].mlp.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[1]))
    embed_texts(vit, tiny_tokenizer(), ["dog"] * 3)
    texts = tiny_tokenizer()(["dog", "dog dog"])["input_ids"]
    embed_texts(vit, tiny_tokenizer(), ["dog", "dog dog"])
    assert rows == [len(texts[0]), len({tuple(text[:end]) for text in texts for end in range(1, len(text) + 1)})]


@pytest.mark.parametrize(("device", "expected"), [("cpu", 256), ("meta", 256), ("cuda", 1024)])
def test_an_accelerator_gets_more_texts_at_a_time(device, expected):
    model = SimpleNamespace(device=torch.device(device))
    assert zero_shot_clip_hf._texts_per_pass(model, None) == expected
    assert zero_shot_clip_hf._texts_per_pass(model, 7) == 7


def test_logits_are_the_models_own(model):
    pixels = random_pixels(model.config)
    classifier = make(model)
    torch.testing.assert_close(classifier(pixels), expected_logits(model, pixels), rtol=0, atol=1e-5)
    torch.testing.assert_close(classifier.probabilities(pixels), expected_logits(model, pixels).softmax(-1))
    raw = (pixels * 50 + 128).clamp(0, 255).to(torch.uint8)
    torch.testing.assert_close(classifier(raw), expected_logits(model, raw), rtol=0, atol=1e-5)
    assert not classifier(pixels).requires_grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float64, 1e-12)])
def test_logits_in_other_dtypes(dtype, tolerance):
    model = tiny_zero_shot_model("vit").to(dtype)
    pixels = random_pixels(model.config)
    logits = make(model)(pixels)
    assert logits.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(logits, expected_logits(model, pixels), rtol=0, atol=tolerance)


def test_similarities_keep_full_precision_under_autocast(vit):
    embeds = torch.nn.functional.normalize(torch.randn(2, 32), dim=-1)
    classifier = ZeroShotClassifier(vit, ("dog", "ox"), TEMPLATES, embeds)
    with torch.autocast("cpu", torch.bfloat16):
        assert classifier(random_pixels(vit.config)).dtype == torch.float32


def test_the_scale_is_read_at_every_call(vit):
    classifier, pixels = make(vit), random_pixels(vit.config)
    before = classifier(pixels)
    with torch.no_grad():
        vit.logit_scale.fill_(100)  # exp(100) is far beyond the bound of 100
    torch.testing.assert_close(classifier(pixels), before * 100 * 0.07, rtol=1e-5, atol=1e-4)


def test_transformers_own_model_works_as_well():
    model = tiny_transformers_model()
    pixels = random_pixels(model.config)
    classifier = make(model)
    torch.testing.assert_close(classifier(pixels), expected_logits(model, pixels), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="uint8"):
        classifier(pixels.to(torch.uint8))


@pytest.mark.parametrize("make_model", [lambda: tiny_zero_shot_model("resnet"), tiny_transformers_model])
def test_a_model_that_returns_tuples_answers_the_same(make_model):
    model = make_model()
    pixels = random_pixels(model.config)
    expected = make(model)(pixels)
    model.config.return_dict = False
    torch.testing.assert_close(make(model)(pixels), expected, rtol=0, atol=0)


def test_top_k_gives_the_most_probable_classes_first(model):
    classifier, pixels = make(model), random_pixels(model.config)
    answers = classifier.top_k(pixels, k=99)
    for row, answer in zip(classifier.probabilities(pixels).tolist(), answers, strict=True):
        assert answer == sorted(
            ({"score": score, "label": name} for score, name in zip(row, NAMES, strict=True)),
            key=lambda one: -one["score"],
        )
    assert classifier.top_k(pixels, k=2) == [answer[:2] for answer in answers]
    with pytest.raises(ValueError, match="k is 0"):
        classifier.top_k(pixels, k=0)


def test_equal_scores_keep_the_order_of_the_names(vit, monkeypatch):
    names = [f"class {number}" for number in range(40)]
    classifier = make(vit, names)
    monkeypatch.setattr(classifier, "probabilities", lambda _: torch.tensor([[0.01, 0.04] * 20]))
    assert [one["label"] for one in classifier.top_k(None, k=40)[0]] == names[1::2] + names[::2]


def test_a_stream_is_read_batch_by_batch(model):
    classifier = make(model)
    batches = random_pixels(model.config, batch_size=6).split(4)
    read = []

    def source():
        for batch in batches:
            read.append(len(batch))
            yield batch

    stream = classifier.stream_top_k(source(), k=2)
    answers = [next(stream)]
    assert read == [4]
    answers += stream
    assert read == [4, 2]
    assert answers == [answer for batch in batches for answer in classifier.top_k(batch, k=2)]


def test_a_long_prompt_is_cut_with_a_warning(vit, monkeypatch):
    warnings = []
    monkeypatch.setattr(zero_shot_clip_hf.logger, "warning", warnings.append)
    embeds = embed_texts(vit, tiny_tokenizer(), ["dog " * 99, "ox"])
    assert warnings == [f"1 of 2 texts are longer than {CONTEXT_LENGTH} tokens and were cut"]
    torch.testing.assert_close(embeds[0], plain_text_embeds(vit, ["dog " * (CONTEXT_LENGTH - 2)])[0])
    embed_texts(vit, tiny_tokenizer(), ["dog " * (CONTEXT_LENGTH - 2)])
    assert len(warnings) == 1


def test_the_model_bounds_the_length_where_the_tokenizer_does_not(vit, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer(), "model_max_length", 10**30)
    assert embed_texts(vit, tiny_tokenizer(), ["dog " * 99]).shape == (1, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": []}, "class_names is empty"),
        ({"names": "dog"}, "class_names is 'dog', of type str"),
        ({"names": ["dog", "ox", "dog"]}, "'dog'.*once"),
        ({"names": ["dog", 3]}, "3, of type int"),
        ({"templates": []}, "templates is empty"),
        ({"templates": "a {}"}, "templates is 'a {}', of type str"),
        ({"templates": ["a {}", "a photo"]}, "'a photo' must have exactly one"),
        ({"templates": ["{} and {}"]}, "exactly one"),
        ({"templates": ["a {name}"]}, "exactly one"),
        ({"templates": ["a {0}"]}, "exactly one"),
        ({"templates": ["a {:>9}"]}, "exactly one"),
        ({"templates": ["a {!r}"]}, "exactly one"),
        ({"templates": ["a {"]}, "not a template"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_mistakes_raise_at_construction(vit, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(vit, **arguments)


def test_a_tokenizer_of_another_vocabulary_is_refused(vit):
    tokenizer = type(tiny_tokenizer()).train(["another corpus"] * 3, context_length=CONTEXT_LENGTH)
    with pytest.raises(ValueError, match="tokenize them with the model's own tokenizer"):
        embed_texts(vit, tokenizer, ["dog", "ox"], batch_size=1)


def test_braces_may_be_escaped(vit):
    weights = make(vit, ["dog"], templates=["{{x}} {}"]).weights
    torch.testing.assert_close(weights, plain_text_embeds(vit, ["{x} dog"]))


def test_weights_must_fit_names_and_model(vit):
    with pytest.raises(ValueError, match=r"\(2, 16\).*\(2, 32\)"):
        ZeroShotClassifier(vit, ["dog", "ox"], TEMPLATES, torch.ones(2, 16))


def test_a_model_in_training_mode_is_refused(vit):
    classifier = make(vit)
    vit.train()
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        make(vit)
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        classifier(random_pixels(vit.config))


def test_another_kind_of_model_is_refused():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    siglip = SiglipModel(SiglipConfig(text_config=sizes, vision_config=sizes)).eval()
    with pytest.raises(ValueError, match=r"'siglip'.*clip_hf, clip"):
        make(siglip)


def test_a_saved_classifier_answers_the_same(model, tmp_path):
    names = [*NAMES, "größe", "犬"]
    classifier = make(model, names, templates=TEMPLATES)
    model.save_pretrained(tmp_path)
    classifier.save_pretrained(tmp_path)
    reloaded_model = ClipHfModel.from_pretrained(tmp_path)
    loaded = ZeroShotClassifier.from_pretrained(tmp_path, reloaded_model)
    assert (loaded.class_names, loaded.templates) == (tuple(names), TEMPLATES)
    pixels = random_pixels(model.config)
    assert loaded(pixels).equal(classifier(pixels))
    loaded.save_pretrained(tmp_path / "again")
    for file in ("zero_shot_classifier.json", "zero_shot_classifier.safetensors"):
        assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_a_saved_classifier_is_refused_with_another_text_tower(vit, tmp_path):
    make(vit).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another text tower"):
        ZeroShotClassifier.from_pretrained(tmp_path, tiny_zero_shot_model("vit", seed=1))
    with torch.no_grad():
        vit.vision_model.projection.weight.mul_(2)  # the image tower may have been trained since
    ZeroShotClassifier.from_pretrained(tmp_path, vit)
    with torch.no_grad():
        vit.text_model.layers[0].mlp.fc1.weight[3, 5] += 1e-3
    with pytest.raises(ValueError, match="another text tower"):
        ZeroShotClassifier.from_pretrained(tmp_path, vit)
    with pytest.raises(ValueError, match="bfloat16"):
        ZeroShotClassifier.from_pretrained(tmp_path, tiny_zero_shot_model("vit").to(torch.bfloat16))


def test_offloaded_weights_give_the_same_answers(model, tmp_path):
    model.save_pretrained(tmp_path)
    device_map = {"text_model": "disk", "vision_model": "disk", "logit_scale": "cpu"}
    offloaded = ClipHfModel.from_pretrained(tmp_path, device_map=device_map, offload_folder=tmp_path / "offload")
    classifier, pixels = make(offloaded), random_pixels(model.config)
    torch.testing.assert_close(classifier(pixels), make(model)(pixels), rtol=0, atol=1e-5)
    assert classifier.is_current
    with pytest.raises(ValueError, match="without offloading"):
        classifier.save_pretrained(tmp_path)


def test_an_outdated_classifier_is_not_saved(vit, tmp_path):
    classifier = make(vit)
    with torch.no_grad():
        vit.text_model.projection.weight.mul_(2)
    assert not classifier.is_current
    with pytest.raises(ValueError, match="from_class_names"):
        classifier.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_folders_without_a_classifier_and_newer_formats_say_so(vit, tmp_path):
    with pytest.raises(OSError, match=r"no zero_shot_classifier.json and no zero_shot_classifier.safetensors"):
        ZeroShotClassifier.from_pretrained(tmp_path, vit)
    make(vit).save_pretrained(tmp_path)
    file = tmp_path / "zero_shot_classifier.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"format_version": 2}), encoding="utf-8")
    with pytest.raises(ValueError, match="pip install --upgrade clip_hf"):
        ZeroShotClassifier.from_pretrained(tmp_path, vit)


@pytest.mark.parametrize("file", ["zero_shot_classifier.json", "zero_shot_classifier.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"no json"])
def test_a_damaged_classifier_is_named(vit, file, content, tmp_path):
    make(vit).save_pretrained(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        ZeroShotClassifier.from_pretrained(tmp_path, vit)


def test_a_path_is_no_model(vit, tmp_path):
    make(vit).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of type str: load it with from_pretrained"):
        ZeroShotClassifier.from_pretrained(tmp_path, "path/to/checkpoint")
    with pytest.raises(ValueError, match="of type str: load it with from_pretrained"):
        ZeroShotClassifier.from_class_names("path/to/checkpoint", tiny_tokenizer(), NAMES)
