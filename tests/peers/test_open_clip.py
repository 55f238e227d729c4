"""All nine architectures against OpenCLIP's own code, on its random weights."""

import pytest
import torch

from clip_hf import ClipHfConfig, ClipHfModel
from tests.tiny_models import random_ids, random_pixels, randomize_batch_norms

pytestmark = pytest.mark.peers

OPEN_CLIP_NAMES = {
    "RN50": "RN50",
    "RN101": "RN101",
    "RN50x4": "RN50x4",
    "RN50x16": "RN50x16",
    "RN50x64": "RN50x64",
    "ViT-B/32": "ViT-B-32",
    "ViT-B/16": "ViT-B-16",
    "ViT-L/14": "ViT-L-14",
    "ViT-L/14@336px": "ViT-L-14-336",
}


@pytest.mark.parametrize("name", OPEN_CLIP_NAMES)
def test_embeddings_equal_open_clips(name):
    open_clip = pytest.importorskip("open_clip", reason="OpenCLIP lives in the environment of `make test-peers`")
    torch.manual_seed(0)
    reference = open_clip.create_model(OPEN_CLIP_NAMES[name], pretrained=None, force_quick_gelu=True).eval()
    randomize_batch_norms(reference)
    model = ClipHfModel.from_pretrained(
        None, config=ClipHfConfig.from_architecture(name), state_dict=reference.state_dict()
    )
    ids, pixels = random_ids(model.config, batch_size=3), random_pixels(model.config, batch_size=1)
    with torch.no_grad():
        output = model(ids, pixels)
        image_embeds = reference.encode_image(pixels, normalize=True)
        text_embeds = reference.encode_text(ids, normalize=True)
    torch.testing.assert_close(output.image_embeds, image_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.text_embeds, text_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.scale, reference.logit_scale.exp()[None])


def test_custom_text_layout_opens_too():
    """OpenCLIP keeps the text tower under `text.` where it has a configuration of its own."""
    open_clip = pytest.importorskip("open_clip", reason="OpenCLIP lives in the environment of `make test-peers`")
    torch.manual_seed(0)
    reference = open_clip.create_model(
        "ViT-B-32", pretrained=None, force_quick_gelu=True, force_custom_text=True
    ).eval()
    assert any(key.startswith("text.") for key in reference.state_dict())
    model = ClipHfModel.from_pretrained(
        None, config=ClipHfConfig.from_architecture("ViT-B/32"), state_dict=reference.state_dict()
    )
    ids = random_ids(model.config, batch_size=3)
    with torch.no_grad():
        expected = reference.encode_text(ids, normalize=True)
        torch.testing.assert_close(model(ids).text_embeds, expected, rtol=0, atol=1e-5)
