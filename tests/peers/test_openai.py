"""OpenAI's .pt files through OpenAI's own loader and model, as the package clip-anytorch distributes them."""

import sys
import types

import packaging.version
import pytest
import torch

from clip_hf import ClipHfConfig, ClipHfImageProcessor, ClipHfModel
from clip_hf.conversion.checking import Files, compare
from clip_hf.conversion.reading import Checkpoint, read_checkpoint
from clip_hf.conversion.writing import write_checkpoint
from tests.conversion.test_layouts import assert_same_bits
from tests.conversion.tiny_checkpoints import tiny_checkpoint
from tests.peers.test_open_clip import OPEN_CLIP_NAMES
from tests.tiny_models import TOWERS, random_ids, random_pixels

with pytest.MonkeyPatch.context() as patch:
    # It takes `packaging` from pkg_resources, which setuptools no longer has.
    patch.setitem(sys.modules, "pkg_resources", types.SimpleNamespace(packaging=packaging))
    clip = pytest.importorskip("clip.clip", reason="OpenAI's code lives in the environment of `make test-peers`")
    openai = pytest.importorskip("clip.model")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("tower", TOWERS)
def test_openais_loader_opens_what_we_write(tower, tmp_path):
    checkpoint = tiny_checkpoint(tmp_path, tower)
    write_checkpoint(checkpoint, tmp_path / "clip.pt", "openai")
    reference, _ = clip.load(str(tmp_path / "clip.pt"), device="cpu")
    assert reference.visual.input_resolution == checkpoint.config.vision_config.image_size
    model = ClipHfModel.from_openai(tmp_path / "clip.pt", dtype=torch.float32)
    ids, pixels = random_ids(model.config), random_pixels(model.config)
    with torch.no_grad():
        images, texts = model.get_image_features(pixels).pooler_output, model.get_text_features(ids).pooler_output
        torch.testing.assert_close(images, reference.encode_image(pixels), rtol=0, atol=1e-5)
        torch.testing.assert_close(texts, reference.encode_text(ids), rtol=0, atol=1e-5)
    comparison = compare(
        Files(str(tmp_path / "clip.pt"), "openai"), Files(str(tmp_path / "clip.pt"), "openai"), model.config
    )
    assert comparison.original.startswith("open_clip")
    assert comparison.difference < 1e-5


@pytest.mark.parametrize("name", OPEN_CLIP_NAMES)
def test_all_nine_fill_openais_model_completely(name, tmp_path):
    """OpenAI's `build_model` reads the architecture off the weights and loads them strictly."""
    torch.manual_seed(0)
    config = ClipHfConfig.from_architecture(name)
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in ClipHfModel(config).state_dict().items()}
    weights = {key: torch.rand(shape, dtype=torch.float16) for key, shape in shapes.items() if "tracked" not in key}
    weights |= {key: torch.tensor(3) for key in shapes if "tracked" in key}
    config.dtype = torch.float16
    size = config.vision_config.image_size
    checkpoint = Checkpoint("clip_hf", config, weights, ClipHfImageProcessor(size=size, crop_size=size), None)
    write_checkpoint(checkpoint, tmp_path / "clip.pt", "openai")
    archive = dict(torch.jit.load(tmp_path / "clip.pt", map_location="cpu").state_dict())
    assert {"input_resolution", "context_length", "vocab_size"} <= archive.keys()
    reference = openai.build_model(dict(archive))
    assert (reference.visual.input_resolution, reference.context_length, reference.vocab_size) == (size, 77, 49408)
    for key, tensor in reference.state_dict().items():
        assert torch.equal(tensor.half() if tensor.is_floating_point() else tensor, archive[key]), key
    assert_same_bits(read_checkpoint(str(tmp_path / "clip.pt")).weights, weights)
