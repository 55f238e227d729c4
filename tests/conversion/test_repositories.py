"""OpenCLIP's checkpoints by the name of a repository, on the tests' own Hub."""

import json
from pathlib import Path

from tests.hub.conftest import hub, run_python  # noqa: F401  fixtures
from tests.open_clip_folders import write_open_clip_folder

OPEN_AND_CONVERT = """
import json
from pathlib import Path
import torch
from huggingface_hub import HfApi
from clip_hf import ClipHfImageProcessor, ClipHfModel, ClipHfProcessor, ClipHfTextModel, ClipHfTokenizer
from clip_hf.conversion.reading import find_layout, read_checkpoint
from tests.tiny_models import random_ids, random_pixels

api = HfApi()
features = []
for folder in folders:
    api.create_repo(f"tester/{Path(folder).name}", private=True)
    api.upload_folder(repo_id=f"tester/{Path(folder).name}", folder_path=folder)
for source in [*folders, *(f"tester/{Path(folder).name}" for folder in folders)]:
    model, processor = ClipHfModel.from_pretrained(source), ClipHfProcessor.from_pretrained(source)
    ids, pixels = random_ids(model.config), random_pixels(model.config)
    with torch.no_grad():
        output = model(ids, pixels)
        assert torch.equal(ClipHfTextModel.from_pretrained(source)(ids).text_embeds, model.text_model(ids).text_embeds)
    options = ClipHfImageProcessor.from_pretrained(source).to_dict()
    assert processor.image_processor.to_dict() == options
    checkpoint = read_checkpoint(source)
    assert find_layout(source) == checkpoint.layout == "open_clip"
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in checkpoint.weights.items())
    tokens = ClipHfTokenizer.from_pretrained(source)("a photo of a dog")["input_ids"]
    assert tokens == checkpoint.tokenizer("a photo of a dog")["input_ids"]
    features.append([output.logits_per_image.tolist(), options["size"], tokens])
revision = api.repo_info(source).sha
ClipHfModel.from_pretrained(source, revision=revision, token=api.token)
print(json.dumps(features))
"""


def test_repository_gives_what_its_folder_gives(hub, run_python, tmp_path):  # noqa: F811
    folders = [write_open_clip_folder(tmp_path / f"pickled-{pickled}", pickled=pickled) for pickled in (False, True)]
    root = Path(__file__).parents[2]
    code = f"import sys\nsys.path.insert(0, {str(root)!r})\nfolders = {[str(folder) for folder in folders]!r}\n"
    printed = run_python(code + OPEN_AND_CONVERT, hub.env, with_clip_hf=True)
    from_folder, *others = json.loads(printed.splitlines()[-1])
    assert others == [from_folder] * 3
