"""Processors and image processors of folders of every origin: which class opens them, and with which options."""

from pathlib import Path

import pytest
from transformers import CLIPImageProcessorPil, CLIPProcessor

from clip_hf import ClipHfImageProcessor, ClipHfImageProcessorTorch, ClipHfProcessor, ClipHfTokenizer
from clip_hf.model.image_processing_clip_hf import IMAGE_PROCESSOR_CLASSES
from tests.open_clip_folders import clip_tokenizer, small_tokenizer, write_open_clip_folder


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
