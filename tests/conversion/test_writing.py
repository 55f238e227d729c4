"""Files of every layout: bit-identical round trips, opened by those whose files they are, never half-written."""

import copy
import itertools
import json
import os

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import AddedToken
from transformers import AutoModel, AutoProcessor, AutoTokenizer, CLIPModel, CLIPProcessor, CLIPTokenizer

from clip_hf import ClipHfConfig, ClipHfImageProcessor, ClipHfModel, ClipHfTokenizer
from clip_hf.conversion.reading import Checkpoint, read_checkpoint
from clip_hf.conversion.writing import is_openai_vocabulary, new_target, tokenizer_notes, write_checkpoint
from clip_hf.model.architectures_clip_hf import ARCHITECTURES
from clip_hf.model.open_clip_checkpoint_clip_hf import read_open_clip_config
from clip_hf.model.tensor_files_clip_hf import read_tensors
from tests.conversion.test_layouts import assert_same_bits, layouts_of, random_bits
from tests.conversion.tiny_checkpoints import LAYOUTS, tiny_checkpoint, write_all_layouts
from tests.open_clip_folders import CAPTIONS, small_tokenizer
from tests.openai_weights import openai_weights
from tests.tiny_models import TOWERS

WEIGHT_FILES = {
    "clip_hf": "model.safetensors",
    "transformers": "model.safetensors",
    "open_clip": "open_clip_model.safetensors",
}
PAIRS = [(tower, *pair) for tower in TOWERS for pair in itertools.permutations(LAYOUTS[tower], 2)]


@pytest.fixture(scope="module", params=TOWERS)
def written(request, tmp_path_factory):
    return write_all_layouts(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def all_written(tmp_path_factory):
    return {tower: write_all_layouts(tmp_path_factory.mktemp(tower), tower) for tower in TOWERS}


def tensors_of(path, layout):
    return read_tensors(path if layout == "openai" else path / WEIGHT_FILES[layout])


def convert(source, target, layout, tokenizer=None):
    checkpoint = read_checkpoint(str(source), tokenizer and str(tokenizer))
    with new_target(target) as path:
        write_checkpoint(checkpoint, path, layout)
    return checkpoint


def architecture(config):
    """What a configuration says of the model, without what saving and loading write into it."""
    text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
    for part in (text, vision):
        part.update(dtype=None, architectures=None, auto_map=None)
    return config.projection_dim, config.dtype, text, vision


def preparation(checkpoint):
    options = checkpoint.image_processor.to_dict()
    return {name: value for name, value in options.items() if name not in ("auto_map", "processor_class")}


@pytest.mark.parametrize(("tower", "one", "other"), PAIRS)
def test_there_and_back_is_bit_identical(all_written, tower, one, other, tmp_path):
    source = all_written[tower][one]
    there, back = tmp_path / ("there.pt" if other == "openai" else "there"), tmp_path / "back.pt"
    before = convert(source, there, other)
    after = convert(there, back, one)
    assert_same_bits(tensors_of(back, one), tensors_of(source, one))
    assert_same_bits(tensors_of(there, other), tensors_of(all_written[tower][other], other))
    assert architecture(before.config) == architecture(after.config)
    assert preparation(before) == preparation(after)
    if "openai" not in (one, other):
        assert before.tokenizer(CAPTIONS)["input_ids"] == after.tokenizer(CAPTIONS)["input_ids"]
        assert before.tokenizer.model_max_length == after.tokenizer.model_max_length == 16


def test_types_of_the_archive_are_kept(written):
    types = {tensor.dtype for tensor in tensors_of(written["clip_hf"], "clip_hf").values()}
    assert {torch.float16, torch.float32} <= types
    assert json.loads((written["clip_hf"] / "config.json").read_text())["dtype"] == "float16"


def test_openai_archive_is_what_torch_itself_opens(written):
    """Names, shapes, types and the three numbers: those that OpenAI's loader finds in a released archive."""
    tower = "resnet" if "transformers" not in written else "vit"
    assert_same_bits(dict(torch.jit.load(written["openai"]).state_dict()), openai_weights(tower))


def test_ours_opens_by_auto_model_with_its_code_beside_it(written):
    import clip_hf  # noqa: F401  registers

    model = AutoModel.from_pretrained(written["clip_hf"], dtype=torch.float32)
    assert type(model) is ClipHfModel
    assert (written["clip_hf"] / "modeling_clip_hf.py").is_file()
    processor = AutoProcessor.from_pretrained(written["clip_hf"])
    model(**processor(images=Image.new("RGB", (80, 70)), text=CAPTIONS, padding=True, return_tensors="pt"))


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory):
    return write_all_layouts(tmp_path_factory.mktemp("vit"), "vit")["transformers"]


def test_transformers_opens_its_folder_completely(transformers_folder):
    model, info = CLIPModel.from_pretrained(transformers_folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(AutoModel.from_pretrained(transformers_folder)) is CLIPModel
    processor = CLIPProcessor.from_pretrained(transformers_folder)
    ours = read_checkpoint(str(transformers_folder))
    image = Image.linear_gradient("L").convert("RGB").resize((90, 50))
    inputs = processor(images=image, text=CAPTIONS, return_tensors="pt", padding=True, truncation=True)
    assert inputs["input_ids"].tolist() == ours.tokenizer(CAPTIONS, padding=True)["input_ids"]
    torch.testing.assert_close(
        inputs["pixel_values"], ours.image_processor(image, return_tensors="pt")["pixel_values"]
    )
    assert model.config.text_config.eos_token_id == 529


@pytest.mark.parametrize("layout", ["clip_hf", "transformers"])
def test_added_tokens_keep_their_ids(layout, tmp_path):
    checkpoint = checkpoint_with_added_tokens(tmp_path)
    write_checkpoint(checkpoint, tmp_path / layout, layout)
    written = AutoTokenizer.from_pretrained(tmp_path / layout)
    assert type(written) is (ClipHfTokenizer if layout == "clip_hf" else CLIPTokenizer)
    assert written.get_vocab() == checkpoint.tokenizer.get_vocab()
    texts = ["a Zebrafish", "<X> a dog <new> dog", "zebrafishes"]
    assert written(texts)["input_ids"] == checkpoint.tokenizer(texts)["input_ids"]
    assert written("<x>")["input_ids"][1:-1] == [531]
    assert read_checkpoint(str(tmp_path / layout)).tokenizer(texts)["input_ids"] == written(texts)["input_ids"]


@pytest.mark.parametrize("layout", ["open_clip", "openai"])
def test_layouts_that_end_with_the_last_token_of_all_say_why_they_hold_no_added_ones(layout, tmp_path):
    message = "it reads a text at its largest id, 532 here, and this model at 529: ids .* added"
    with pytest.raises(ValueError, match=message):
        write_checkpoint(checkpoint_with_added_tokens(tmp_path), tmp_path / "target", layout)


def checkpoint_with_added_tokens(folder):
    checkpoint = tiny_checkpoint(folder, "vit")
    checkpoint.tokenizer.add_tokens(["Zebrafish", AddedToken("<X>", special=True), "<new>"])
    checkpoint.config.text_config.vocab_size = len(checkpoint.tokenizer)
    name = "text_model.embeddings.token_embedding.weight"
    checkpoint.weights[name] = torch.cat([checkpoint.weights[name], checkpoint.weights[name][:3]])
    return checkpoint


@pytest.mark.parametrize("layout", ["clip_hf", "transformers"])
def test_shards(layout, tmp_path):
    checkpoint = tiny_checkpoint(tmp_path, "vit")
    write_checkpoint(checkpoint, tmp_path / "sharded", layout, max_shard_size="200KB")
    write_checkpoint(checkpoint, tmp_path / "whole", layout)
    shards = sorted(path.name for path in (tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert all(path.stat().st_size < 220_000 for path in (tmp_path / "sharded").glob("*.safetensors"))
    found = {}
    for shard in shards:
        found |= load_file(tmp_path / "sharded" / shard)
    assert_same_bits(found, load_file(tmp_path / "whole" / "model.safetensors"))
    assert_same_bits(read_checkpoint(str(tmp_path / "sharded")).weights, checkpoint.weights)
    opened = (ClipHfModel if layout == "clip_hf" else CLIPModel).from_pretrained(tmp_path / "sharded", dtype="float32")
    whole = type(opened).from_pretrained(tmp_path / "whole", dtype="float32")
    assert_same_bits(dict(opened.state_dict()), dict(whole.state_dict()))


def test_open_clip_looks_into_the_folder_for_a_vocabulary_that_is_not_openais(written):
    text_config = read_open_clip_config(written["open_clip"])["model_cfg"]["text_cfg"]
    assert text_config["hf_tokenizer_name"] == "open_clip"
    assert not is_openai_vocabulary(small_tokenizer())


def test_openais_vocabulary_is_known(test_data, tmp_path):
    tokenizer = ClipHfTokenizer.from_openai_bpe(test_data / "openai_bpe" / "bpe_simple_vocab_16e6.txt.gz")
    assert is_openai_vocabulary(tokenizer)
    split_otherwise = copy.deepcopy(tokenizer)
    split_otherwise.add_tokens("dog</w>")
    assert len(split_otherwise) == len(tokenizer) and not is_openai_vocabulary(split_otherwise)
    config = ClipHfConfig.from_architecture(
        "ViT-B/32", projection_dim=8, text_config={"hidden_size": 8}, vision_config={"hidden_size": 8}
    )
    checkpoint = Checkpoint("clip_hf", config, random_bits(config), ClipHfImageProcessor(), tokenizer)
    write_checkpoint(checkpoint, tmp_path / "open_clip", "open_clip")
    assert "hf_tokenizer_name" not in read_open_clip_config(tmp_path / "open_clip")["model_cfg"]["text_cfg"]


@pytest.mark.parametrize("layout", ["clip_hf", "transformers", "open_clip"])
@pytest.mark.parametrize("clean", [True, False])
def test_cleaning_survives_every_layout(layout, clean, tmp_path):
    checkpoint = tiny_checkpoint(tmp_path, "vit")
    vocab = json.loads(checkpoint.tokenizer.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in vocab["merges"]]
    checkpoint.tokenizer = ClipHfTokenizer(vocab["vocab"], merges, clean=clean, model_max_length=16)
    write_checkpoint(checkpoint, tmp_path / layout, layout)
    again = read_checkpoint(str(tmp_path / layout)).tokenizer
    assert again.clean is clean
    assert again("a &amp; b")["input_ids"] == checkpoint.tokenizer("a &amp; b")["input_ids"]


@pytest.mark.parametrize("layout", ["clip_hf", "transformers", "open_clip"])
def test_a_processor_that_leaves_pixels_raw_becomes_one_that_normalises_as_the_model_does(layout, tmp_path):
    checkpoint = tiny_checkpoint(tmp_path, "vit")
    checkpoint.config.vision_config.image_mean, checkpoint.config.vision_config.image_std = (0.5,) * 3, (0.25,) * 3
    options = checkpoint.image_processor.to_dict()
    checkpoint.image_processor = ClipHfImageProcessor(**options | {"do_rescale": False, "do_normalize": False})
    write_checkpoint(checkpoint, tmp_path / "raw", "clip_hf")
    convert(tmp_path / "raw", tmp_path / "written", layout)
    again = read_checkpoint(str(tmp_path / "written"))
    assert again.config.vision_config.image_mean == pytest.approx((0.5,) * 3)
    assert again.config.vision_config.image_std == pytest.approx((0.25,) * 3)
    assert again.image_processor.do_normalize is again.image_processor.do_rescale is (layout != "clip_hf")
    if layout != "clip_hf":
        assert tuple(again.image_processor.image_mean) == pytest.approx((0.5,) * 3)


def test_a_processor_that_leaves_pixels_raw_goes_to_openai_where_the_model_has_its_numbers(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path, "vit")
    options = checkpoint.image_processor.to_dict()
    checkpoint.image_processor = ClipHfImageProcessor(**options | {"do_rescale": False, "do_normalize": False})
    write_checkpoint(checkpoint, tmp_path / "written.pt", "openai")
    checkpoint.config.vision_config.image_mean = (0.5,) * 3
    with pytest.raises(ValueError, match="its code prepares images in one way"):
        write_checkpoint(checkpoint, tmp_path / "other.pt", "openai")


@pytest.mark.parametrize(
    ("layout", "clean", "notes"),
    [
        ("clip_hf", True, []),
        ("clip_hf", False, []),
        ("transformers", True, ["CLIPTokenizer does not clean"]),
        ("transformers", False, []),
        ("open_clip", True, []),
        ("open_clip", False, ["open_clip's code cleans"]),
        ("openai", True, ["brings its own", "gives other ids"]),
        ("openai", False, ["brings its own", "gives other ids", "openai's code cleans"]),
        ("open_clip", None, ["the source has none"]),
        ("openai", None, ["brings its own"]),
    ],
)
def test_what_a_layouts_tokenizer_does_otherwise_is_said(layout, clean, notes):
    tokenizer = None if clean is None else small_tokenizer()
    if tokenizer is not None:
        tokenizer.clean = clean
    found = tokenizer_notes(tokenizer, layout)
    assert len(found) == len(notes)
    assert all(expected in note for expected, note in zip(notes, found, strict=True))


def test_without_a_tokenizer_the_rest_is_written(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path, "vit")
    checkpoint.tokenizer = None
    for layout in ("clip_hf", "transformers", "open_clip"):
        write_checkpoint(checkpoint, tmp_path / layout, layout)
        again = read_checkpoint(str(tmp_path / layout))
        assert again.tokenizer is None
        assert again.image_processor.to_dict() == checkpoint.image_processor.to_dict()
        assert_same_bits(again.weights, checkpoint.weights)


def test_target_that_exists_is_left_alone(tmp_path):
    (tmp_path / "target").mkdir()
    with pytest.raises(ValueError, match="exists already"), new_target(tmp_path / "target"):
        pytest.fail("the body ran")
    assert os.listdir(tmp_path) == ["target"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_failure_leaves_nothing(kind, tmp_path):
    def fail():
        with new_target(tmp_path / "deep" / "deeper" / "target") as path:
            assert not (tmp_path / "deep" / "deeper" / "target").exists()
            if kind == "folder":
                path.mkdir()
            (path / "weights" if kind == "folder" else path).write_text("half of it")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        fail()
    assert os.listdir(tmp_path) == []
    (tmp_path / "deep").mkdir()
    with pytest.raises(OSError, match="no space left"):
        fail()
    assert os.listdir(tmp_path) == ["deep"]


def test_success_leaves_the_target_alone_in_its_folder(tmp_path):
    with new_target(tmp_path / "new" / "target.pt") as path:
        path.write_text("all of it")
    assert os.listdir(tmp_path / "new") == ["target.pt"]
    assert (tmp_path / "new" / "target.pt").read_text() == "all of it"


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_released_size_there_and_back_in_every_pair_of_layouts(name, tmp_path):
    config = ClipHfConfig.from_architecture(name)
    size = config.vision_config.image_size
    ours = random_bits(config)
    processor = ClipHfImageProcessor(size=size, crop_size=size)
    for one, other in itertools.permutations(layouts_of(config), 2):
        one_path, other_path, back = (tmp_path / f"{part}.pt" for part in ("one", "other", "back"))
        write_checkpoint(Checkpoint("clip_hf", config, ours, processor, None), one_path, one)
        for source, target, layout in ((one_path, other_path, other), (other_path, back, one)):
            checkpoint = read_checkpoint(str(source))
            write_checkpoint(checkpoint, target, layout)
            assert_same_bits(checkpoint.weights, ours)
        assert_same_bits(tensors_of(back, one), tensors_of(one_path, one))
        remove(one_path, other_path, back)


def remove(*paths):
    for path in paths:
        for file in path.iterdir() if path.is_dir() else [path]:
            file.unlink()
        if path.is_dir():
            path.rmdir()
