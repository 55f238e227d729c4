"""Processors and image processors of folders of every origin: which class opens them, and with which options."""

from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPImageProcessorPil, CLIPProcessor

from clip_hf import ClipHfImageProcessor, ClipHfImageProcessorTorch, ClipHfProcessor, ClipHfTokenizer
from clip_hf.model.image_processing_clip_hf import IMAGE_PROCESSOR_CLASSES
from tests.open_clip_folders import clip_tokenizer, small_tokenizer, write_open_clip_folder

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)


@pytest.fixture(params=["clip_hf", "transformers", "open_clip"])
def folder(request, tmp_path) -> Path:
    if request.param == "open_clip":
        return write_open_clip_folder(tmp_path / "model")
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    if request.param == "clip_hf":
        processor = ClipHfProcessor(ClipHfImageProcessor(**sizes), small_tokenizer())
    else:
        processor = CLIPProcessor(CLIPImageProcessorPil(**sizes), clip_tokenizer(small_tokenizer()))
    processor.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("backend", ["pil", "torch"])
def test_a_backend_chooses_the_class_whatever_the_folder(folder, backend):
    processor = ClipHfProcessor.from_pretrained(folder, backend=backend)
    assert type(processor.image_processor) is IMAGE_PROCESSOR_CLASSES[backend]
    assert type(processor.tokenizer) is ClipHfTokenizer and processor.tokenizer.backend == "tokenizers"
    for opener in (ClipHfImageProcessor, ClipHfImageProcessorTorch):
        assert type(opener.from_pretrained(folder, backend=backend)) is IMAGE_PROCESSOR_CLASSES[backend]
        assert type(opener.from_pretrained(folder)) is opener


@pytest.mark.parametrize("opener", [ClipHfProcessor, ClipHfImageProcessor])
def test_a_backend_that_does_not_exist_is_refused(folder, opener):
    with pytest.raises(ValueError, match="backend is 'bogus', but must be one of pil, torch, torchvision"):
        opener.from_pretrained(folder, backend="bogus")


def test_an_image_processor_opens_with_options_that_exist(folder):
    loading = {"revision": "main", "local_files_only": True, "trust_remote_code": True, "token": None}
    processor = ClipHfImageProcessor.from_pretrained(folder, size=64, crop_size=48, **loading)
    assert (processor.size.shortest_edge, processor.crop_size.height) == (64, 48)
    with pytest.raises(TypeError, match="sise is no option of the image processor; did you mean size"):
        ClipHfImageProcessor.from_pretrained(folder, sise=3)
    assert ClipHfImageProcessor.from_pretrained(folder, foo=3, return_unused_kwargs=True)[1] == {"foo": 3}


@pytest.mark.parametrize("backend", [None, "torch"])
def test_a_processor_hands_its_options_to_both_parts(folder, backend):
    options = {"crop_size": 24, "clean": False, "model_max_length": 7}
    processor = ClipHfProcessor.from_pretrained(folder, backend=backend, **options)
    assert processor.image_processor.crop_size.height == 24
    assert (processor.tokenizer.clean, processor.tokenizer.model_max_length) == (False, 7)


def test_an_option_that_does_not_exist_is_refused():
    processor = ClipHfProcessor(ClipHfImageProcessor(), small_tokenizer())
    for name, meant in {"paddding": "padding", "do_resise": "do_resize", "text_kwarg": "text_kwargs"}.items():
        with pytest.raises(TypeError, match=f"{name} is no option of the processor; did you mean {meant}"):
            processor(text=["a"], images=PIXELS, **{name: True})
    with pytest.raises(TypeError, match="imges is no option of the processor; did you mean images"):
        processor(imges=PIXELS)
    with pytest.raises(TypeError, match="paddding is no option of the tokenizer; did you mean padding"):
        processor(text=["a"], text_kwargs={"paddding": True})


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "max_length", "max_length": 9, "truncation": True, "return_tensors": "pt"},
        {"do_resize": False, "crop_size": {"height": 8, "width": 8}, "device": "cpu"},
        {"text_kwargs": {"padding": True}, "images_kwargs": {"size": 10, "crop_size": 8}, "return_tensors": "np"},
        {"common_kwargs": {"return_tensors": "pt"}, "videos_kwargs": {"fps": 2}, "audio_kwargs": {}},
        {"return_mm_token_type_ids": True, "do_sample_frames": True, "sampling_rate": 16000},
    ],
)
def test_options_of_transformers_processors_do_what_they_do_there(options):
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    tokenizer = small_tokenizer()
    ours = ClipHfProcessor(ClipHfImageProcessor(**sizes), tokenizer)
    stock = CLIPProcessor(CLIPImageProcessorPil(**sizes), clip_tokenizer(tokenizer))
    found, expected = (processor(PIXELS, ["a", "b"], **options) for processor in (ours, stock))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(np.asarray(found[name], float), np.asarray(values, float), atol=1e-5, err_msg=name)
