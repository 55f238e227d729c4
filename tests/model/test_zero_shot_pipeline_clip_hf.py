"""Our pipeline against transformers' stock one, with the towers' passes counted."""

import base64
import copy
import http.server
import io
import json
import os
import re
import subprocess
import sys
import threading
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as compiler
from torch.fx.experimental import _config as shapes
from torch.utils.data import Dataset
from transformers import SiglipConfig, SiglipModel, ZeroShotImageClassificationPipeline, pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

from clip_hf import ClipHfModel
from clip_hf.model import zero_shot_clip_hf
from clip_hf.model.zero_shot_clip_hf import ZeroShotClassifier
from clip_hf.model.zero_shot_pipeline_clip_hf import (
    MAX_LABEL_SETS,
    ClipHfZeroShotDispatch,
    ClipHfZeroShotPipeline,
    register_zero_shot_pipeline,
)
from tests.model.test_text_weights_clip_hf import cast_there_and_back, merge_into_data, step_fused_optimizer
from tests.model.tiny_zero_shot import (
    NAMES,
    TEMPLATES,
    pictures,
    tiny_image_processor,
    tiny_tokenizer,
    tiny_transformers_model,
    tiny_zero_shot_model,
)
from tests.tiny_models import TOWERS

TASK = "zero-shot-image-classification"


def build(model, pipeline_class=ClipHfZeroShotPipeline, **kwargs):
    parts = {"tokenizer": tiny_tokenizer(), "image_processor": tiny_image_processor(model)}
    return pipeline(TASK, model=model, **parts, pipeline_class=pipeline_class, device="cpu", **kwargs)


def assert_same(answers, expected):
    assert type(answers) is type(expected)
    if isinstance(expected[0], list):
        assert len(answers) == len(expected)
        for answer, one in zip(answers, expected, strict=True):
            assert_same(answer, one)
    else:
        assert [one["label"] for one in answers] == [one["label"] for one in expected]
        assert [one["score"] for one in answers] == pytest.approx([one["score"] for one in expected], abs=1e-5)


class Passes:
    """How many texts each pass of the text tower had, and how many images each of the image tower."""

    def __init__(self, model):
        self.texts, self.images = [], []
        for tower, passes, name in (
            (model.text_model, self.texts, "input_ids"),
            (model.vision_model, self.images, "pixel_values"),
        ):
            hook = partial(lambda passes, name, module, args, kwargs: passes.append(len(kwargs[name])), passes, name)
            tower.register_forward_pre_hook(hook, with_kwargs=True)

    def since_last(self):
        seen = list(self.texts), list(self.images)
        self.texts.clear()
        self.images.clear()
        return seen


@pytest.fixture(scope="module", params=TOWERS)
def pipes(request):
    """Our pipeline and the stock one, on one model."""
    model = tiny_zero_shot_model(request.param)
    return build(model), build(model, ZeroShotImageClassificationPipeline)


@pytest.fixture
def pipe():
    return build(tiny_zero_shot_model("vit"))


@pytest.fixture(scope="module")
def clip_pipes():
    model = tiny_transformers_model()
    return build(model), build(model, ZeroShotImageClassificationPipeline)


@pytest.mark.parametrize(
    "arguments",
    [
        {"candidate_labels": list(NAMES)},
        {"candidate_labels": list(NAMES), "hypothesis_template": "a drawing of {}"},
        {"candidate_labels": list(NAMES), "hypothesis_template": "{}", "batch_size": 2},
        {"candidate_labels": ["one label"]},
        {"candidate_labels": ["dog " * 99, "ox"]},
    ],
    ids=["labels", "template", "batches", "one label", "long label"],
)
def test_answers_are_the_stock_pipelines(pipes, arguments):
    ours, stock = pipes
    assert_same(ours(pictures()[0], **arguments), stock(pictures()[0], **arguments))
    assert_same(ours(pictures(), **arguments), stock(pictures(), **arguments))


def test_transformers_own_model_answers_the_same(clip_pipes):
    ours, stock = clip_pipes
    assert_same(ours(pictures(), candidate_labels=NAMES), stock(pictures(), candidate_labels=NAMES))


def test_labels_given_twice_are_answered_twice_and_stay_in_order(pipes):
    ours, stock = pipes
    labels = ["zebra", "dog", "ox", "dog", "zebra", "dog"]
    expected = stock(pictures()[0], candidate_labels=labels)
    answer = ours(pictures()[0], candidate_labels=labels)
    assert [one["score"] for one in answer] == pytest.approx([one["score"] for one in expected], abs=1e-5)
    scores = {one["label"]: one["score"] for one in answer}
    # Exactly equal scores, which a product with three equal columns does not promise.
    assert answer == sorted(
        ({"score": scores[label], "label": label} for label in labels), key=lambda one: -one["score"]
    )


def test_saturated_scores_keep_the_order_of_the_labels(pipes, monkeypatch):
    ours, stock = pipes
    labels = [f"label {number}" for number in range(30)]
    logits = torch.zeros(1, 30)
    logits[0, 17] = 200
    monkeypatch.setattr(ZeroShotClassifier, "logits", lambda self, image_embeds: logits)
    expected = stock.postprocess({"candidate_labels": labels, "logits": logits})
    assert ours(pictures()[0], candidate_labels=labels) == expected
    assert [one["label"] for one in expected] == [labels[17], *labels[:17], *labels[18:]]


def test_one_more_picture_costs_one_pass_of_the_image_tower(pipe):
    passes, labels = Passes(pipe.model), [f"label {number}" for number in range(300)]
    pipe(pictures()[0], candidate_labels=labels)
    texts, images = passes.since_last()
    assert (sum(texts), images) == (300, [1])
    pipe(pictures()[1], candidate_labels=labels)
    assert passes.since_last() == ([], [1])
    pipe(pictures(5), candidate_labels=labels, batch_size=2)
    assert passes.since_last() == ([], [2, 2, 1])
    pipe(pictures()[0], candidate_labels=labels[1:])
    assert sum(passes.since_last()[0]) == 299
    pipe(pictures()[0], candidate_labels=labels, hypothesis_template=TEMPLATES)
    assert sum(passes.since_last()[0]) == 900


def test_images_of_every_kind_are_taken(pipe, tmp_path):
    picture = pictures()[0]
    picture.save(tmp_path / "picture.png")
    data = io.BytesIO()
    picture.save(data, "PNG")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        answers = pipe(
            [
                picture,
                str(tmp_path / "picture.png"),
                f"http://127.0.0.1:{server.server_port}/picture.png",
                base64.b64encode(data.getvalue()).decode(),
                base64.encodebytes(data.getvalue()).decode(),  # in lines
                tmp_path / "picture.png",
                data.getvalue(),
            ],
            candidate_labels=NAMES,
            timeout=60,
        )
    finally:
        server.shutdown()
        server.server_close()
    assert answers == [answers[0]] * 7


def test_messy_images_are_read_as_the_image_processor_reads_them(pipe, test_data):
    entries = [json.loads(line) for line in (test_data / "messy/manifest.jsonl").read_text().splitlines()]
    for entry in entries:
        path = str(test_data / "messy" / entry["file_name"])
        if entry["expect"] == "ok":
            expected = pipe.image_processor(path, return_tensors="pt")["pixel_values"]
            assert torch.equal(pipe.preprocess(path)["pixel_values"], expected), entry["file_name"]
        else:
            with pytest.raises(ValueError, match=re.escape(entry["file_name"])):
                pipe.preprocess(path)


def test_a_missing_image_is_named(pipe):
    both = "nosuchdo is neither a file that exists nor an image in base64"
    for name, message in {"no/such/dog.jpg": "no/such/dog.jpg", "nosuchdo": both}.items():
        with pytest.raises(ValueError, match=message):
            pipe(name, candidate_labels=NAMES)


class Pictures(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return pictures(3)[index]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_generators_and_datasets_stream(pipe, batch_size):
    expected = pipe(pictures(3), candidate_labels=NAMES)
    read = []

    def source():
        for number, picture in enumerate(pictures(3)):
            read.append(number)
            yield picture

    stream = iter(pipe(source(), candidate_labels=NAMES, batch_size=batch_size))
    assert_same(next(stream), expected[0])
    assert read == list(range(batch_size))
    assert_same(list(stream), expected[1:])
    assert_same(list(pipe(Pictures(), candidate_labels=NAMES, batch_size=batch_size)), expected)
    rows = [{"image": picture} for picture in pictures(3)]
    assert_same(list(pipe(KeyDataset(rows, "image"), candidate_labels=NAMES, batch_size=batch_size)), expected)


def test_several_templates_are_the_classifiers_ensemble(pipes):
    ours, _ = pipes
    classifier = ZeroShotClassifier.from_class_names(ours.model, tiny_tokenizer(), NAMES, TEMPLATES)
    pixels = tiny_image_processor(ours.model)(pictures(), return_tensors="pt").pixel_values
    expected = classifier.top_k(pixels, k=len(NAMES))
    assert_same(ours(pictures(), candidate_labels=NAMES, hypothesis_template=list(TEMPLATES)), expected)
    preset = build(ours.model, hypothesis_template=TEMPLATES)
    assert_same(preset(pictures(), candidate_labels=NAMES), expected)


def fill_the_scale(model):
    with torch.no_grad():
        model.logit_scale.fill_(1)


@pytest.mark.parametrize(
    "change",
    [
        step_fused_optimizer,
        merge_into_data,
        cast_there_and_back,
        fill_the_scale,
        lambda model: model.to(torch.bfloat16),
    ],
)
def test_changed_weights_are_never_answered_for_with_old_features(pipe, change):
    before = pipe(pictures()[0], candidate_labels=NAMES)
    change(pipe.model)
    after = pipe(pictures()[0], candidate_labels=NAMES)
    assert after == build(pipe.model)(pictures()[0], candidate_labels=NAMES)
    assert after != before


@pytest.mark.slow
@pytest.mark.parametrize("is_dynamic", [False, True])
@pytest.mark.parametrize("tower", TOWERS)
def test_compiled_and_frozen_image_towers_answer_alike_each_with_its_own_weights(tower, is_dynamic):
    torch.compiler.reset()
    counters.clear()
    arguments = {"candidate_labels": NAMES, "hypothesis_template": TEMPLATES}
    for seed in (0, 1):
        model = tiny_zero_shot_model(tower, seed=seed)
        expected = build(model)(pictures(), **arguments)
        model.vision_model.compile(dynamic=is_dynamic)
        with compiler.patch(freezing=True), shapes.patch(backed_size_oblivious=is_dynamic):
            assert_same(build(model)(pictures(), **arguments), expected)
    assert counters["stats"]["unique_graphs"] > 0


@pytest.mark.gpu
@pytest.mark.parametrize("tower", TOWERS)
def test_a_model_that_moves_to_the_gpu_and_back_answers_as_before(tower, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")  # as on a CPU
    pipe, arguments = build(tiny_zero_shot_model(tower)), {"candidate_labels": NAMES, "hypothesis_template": TEMPLATES}
    expected = pipe(pictures(), **arguments)
    for device in ("cuda", "cpu"):
        pipe.device = pipe.model.to(device).device
        assert_same(pipe(pictures(), **arguments), expected)


def test_another_tokenizer_or_model_is_another_key(pipe):
    passes = Passes(pipe.model)
    pipe(pictures()[0], candidate_labels=NAMES)
    passes.since_last()
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe(pictures()[0], candidate_labels=NAMES)
    assert sum(passes.since_last()[0]) == len(NAMES)
    pipe.model = tiny_zero_shot_model("vit", seed=1)
    passes = Passes(pipe.model)
    pipe(pictures()[0], candidate_labels=NAMES)
    assert sum(passes.since_last()[0]) == len(NAMES)


def test_a_few_label_sets_are_kept_and_the_last_used_longest(pipe):
    passes = Passes(pipe.model)
    sets = [[f"label {number}"] for number in range(MAX_LABEL_SETS + 1)]
    for labels in sets[:-1]:
        pipe(pictures()[0], candidate_labels=labels)
    pipe(pictures()[0], candidate_labels=sets[0])
    pipe(pictures()[0], candidate_labels=sets[-1])  # the second set is now the one used longest ago
    assert len(passes.since_last()[0]) == len(sets)
    pipe(pictures()[0], candidate_labels=sets[0])
    assert passes.since_last()[0] == []
    pipe(pictures()[0], candidate_labels=sets[1])
    assert passes.since_last()[0] == [1]


def test_forgotten_labels_are_read_again(pipe):
    passes = Passes(pipe.model)
    pipe(pictures()[0], candidate_labels=NAMES)
    pipe.forget_labels()
    pipe(pictures()[0], candidate_labels=NAMES)
    assert passes.since_last()[0] == [len(NAMES)] * 2


def test_a_long_label_is_cut_with_one_warning(pipe, monkeypatch):
    warnings = []
    monkeypatch.setattr(zero_shot_clip_hf.logger, "warning", warnings.append)
    for picture in pictures(3):
        pipe(picture, candidate_labels=["dog " * 99, "ox"])
    assert len(warnings) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"candidate_labels": "dog, cat"}, "candidate_labels is 'dog, cat', of type str: pass a list"),
        ({"candidate_labels": None}, "candidate_labels is None, of type NoneType: pass a list"),
        ({"candidate_labels": ["dog"], "hypothesis_template": None}, "templates is None, of type NoneType"),
        ({"candidate_labels": []}, "candidate_labels is empty"),
        ({"candidate_labels": ["dog", None]}, "None"),
        ({"candidate_labels": ["dog"], "hypothesis_template": "a photo"}, "exactly one"),
        ({"candidate_labels": ["dog"], "hypothesis_template": []}, "templates is empty"),
        ({"candidate_labels": ["dog"], "hypothesis_templates": "{}"}, "no argument hypothesis_templates"),
        ({"candidate_labels": ["dog"], "tokenizer_kwargs": {"truncation": True}}, "no argument tokenizer_kwargs"),
    ],
)
def test_mistakes_raise(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(pictures()[0], **arguments)


def test_mistakes_raise_at_construction():
    with pytest.raises(ValueError, match="exactly one"):
        build(tiny_zero_shot_model("vit"), hypothesis_template="a photo")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    siglip = SiglipModel(SiglipConfig(text_config=sizes, vision_config=sizes)).eval()
    with pytest.raises(ValueError, match="'siglip'"):
        pipeline(
            TASK,
            model=siglip,
            tokenizer=tiny_tokenizer(),
            image_processor=tiny_image_processor(siglip),
            pipeline_class=ClipHfZeroShotPipeline,
        )
    build(tiny_zero_shot_model("vit"), local_files_only=True)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder for each tower, as `save_pretrained` of its parts leaves them."""
    folders = {}
    for tower in TOWERS:
        model = tiny_zero_shot_model(tower)
        folders[tower] = tmp_path_factory.mktemp(tower)
        for part in (model, tiny_tokenizer(), tiny_image_processor(model)):
            part.save_pretrained(folders[tower])
    return folders


@pytest.mark.parametrize("tower", TOWERS)
def test_a_plain_call_takes_our_pipeline_for_our_checkpoint(checkpoints, tower):
    """Without trust_remote_code, although the folder names a pipeline of its own."""
    entries = json.loads((checkpoints[tower] / "config.json").read_text(encoding="utf-8"))["custom_pipelines"]
    assert entries[TASK]["impl"] == "zero_shot_pipeline_clip_hf.ClipHfZeroShotPipeline"
    answers = []
    for trust in (None, False, True):
        pipe = pipeline(TASK, model=str(checkpoints[tower]), device="cpu", trust_remote_code=trust)
        assert type(pipe) is ClipHfZeroShotPipeline
        assert type(pipe.model) is ClipHfModel
        answers.append(pipe(pictures(), candidate_labels=NAMES))
    assert answers == [answers[0]] * 3
    assert_same(answers[0], build(tiny_zero_shot_model(tower))(pictures(), candidate_labels=NAMES))


def test_a_saved_models_configuration_opens_pipelines_and_can_be_saved_again(tmp_path):
    model = tiny_zero_shot_model("vit")
    for part in (model, tiny_tokenizer(), tiny_image_processor(model)):
        part.save_pretrained(tmp_path)
    for trust in (None, True):
        pipe = pipeline(TASK, model=str(tmp_path), config=model.config, device="cpu", trust_remote_code=trust)
        assert type(pipe) is ClipHfZeroShotPipeline
    before = (tmp_path / "config.json").read_bytes()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


def test_other_models_keep_the_pipeline_they_had(clip_pipes, tmp_path):
    """From an object and from a folder, with the stock class, its answers and its passes."""
    _, stock = clip_pipes
    for part in (stock.model, stock.tokenizer, stock.image_processor):
        part.save_pretrained(tmp_path)
    parts = {"tokenizer": stock.tokenizer, "image_processor": stock.image_processor, "device": "cpu"}
    for model in (stock.model, str(tmp_path)):
        pipe = pipeline(TASK, model=model, **parts)
        assert type(pipe) is ZeroShotImageClassificationPipeline
        assert_same(pipe(pictures(), candidate_labels=NAMES), stock(pictures(), candidate_labels=NAMES))


def test_a_pipeline_that_somebody_else_registered_stays(monkeypatch):
    class Theirs(ZeroShotImageClassificationPipeline):
        pass

    monkeypatch.setattr(ClipHfZeroShotDispatch, "before", ClipHfZeroShotDispatch.before)  # restored after the test
    monkeypatch.setitem(PIPELINE_REGISTRY.supported_tasks[TASK], "impl", Theirs)
    for _ in range(2):  # also where the package is imported twice
        register_zero_shot_pipeline()
        assert type(build(tiny_transformers_model(), None)) is Theirs
        assert type(build(tiny_zero_shot_model("vit"), None)) is ClipHfZeroShotPipeline


WITH_REMOTE_CODE = """
import json, sys
import torch
from transformers import AutoModelForZeroShotImageClassification, pipeline

torch.set_num_threads(1)
folders, picture, labels = json.loads(sys.argv[1])
answers = {}
for tower, folder in folders.items():
    pipe = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True, device="cpu")
    for one in (pipe, pipe.model, pipe.tokenizer, pipe.image_processor):
        assert type(one).__module__.startswith("transformers_modules."), type(one)
    passes = []
    pipe.model.text_model.register_forward_pre_hook(lambda *_: passes.append(1))
    answers[tower] = [pipe(picture, candidate_labels=labels) for _ in range(2)]
    assert len(passes) == 1
    repr(pipe.model.config)
    pipe.save_pretrained(folder + "-again")
    pipe = pipeline("zero-shot-image-classification", model=folder + "-again", trust_remote_code=True, device="cpu")
    answers[tower].append(pipe(picture, candidate_labels=labels))
    AutoModelForZeroShotImageClassification.from_pretrained(folder, trust_remote_code=True)
assert "clip_hf" not in sys.modules
print(json.dumps(answers))
"""


def test_the_checkpoint_brings_its_pipeline_where_clip_hf_is_not_imported(checkpoints, tmp_path):
    picture = tmp_path / "picture.png"
    pictures()[0].save(picture)
    arguments = [{tower: str(folder) for tower, folder in checkpoints.items()}, str(picture), NAMES]
    run = subprocess.run(
        [sys.executable, "-c", WITH_REMOTE_CODE, json.dumps(arguments)],
        env=os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    for tower, answers in json.loads(run.stdout.splitlines()[-1]).items():
        expected = build(tiny_zero_shot_model(tower))(str(picture), candidate_labels=NAMES)
        for answer in answers:
            assert_same(answer, expected)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("pool", [False, True])
def test_feature_pipelines_give_in_batches_what_they_give_one_by_one(tower, pool):
    model = tiny_zero_shot_model(tower)
    parts = {"model": model, "tokenizer": tiny_tokenizer(), "image_processor": tiny_image_processor(model)}
    image_features = pipeline("image-feature-extraction", pool=pool, **parts)
    text_features = pipeline("feature-extraction", **parts)
    for features, inputs in ((image_features, pictures(3)), (text_features, ["a dog", "a cat", "the dog"])):
        together = features(inputs, batch_size=2)
        for one, expected in zip(together, map(features, inputs), strict=True):
            torch.testing.assert_close(torch.tensor(one), torch.tensor(expected), rtol=0, atol=1e-5)
