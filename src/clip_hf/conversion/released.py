"""The nine released checkpoints: where they lie, which digests they have, whether the conversion is true to them."""

import hashlib
import tempfile
import urllib.error
from dataclasses import dataclass
from pathlib import Path

import torch

from clip_hf.conversion.checking import Comparison, Files, compare
from clip_hf.conversion.reading import Checkpoint, read_checkpoint
from clip_hf.conversion.writing import is_openai_vocabulary, write_checkpoint
from clip_hf.model.modeling_clip_hf import ClipHfModel

_OPENAI = "https://openaipublic.azureedge.net/clip/models"


@dataclass(frozen=True)
class Released:
    """A released checkpoint and its copies.

    Args:
        url: of OpenAI's file; the last folder's name is the file's SHA-256.
        copies: repositories with the same weights in the files of transformers and OpenCLIP.
    """

    url: str
    copies: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """The digest that OpenAI's file has, in hexadecimal digits."""
        return self.url.split("/")[-2]


# URLs: openai/CLIP clip/clip.py:31-39@d05afc4. Copies: the repositories of transformers' and OpenCLIP's own loaders.
RELEASED: dict[str, Released] = {
    "RN50": Released(
        f"{_OPENAI}/afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
        ("timm/resnet50_clip.openai",),
    ),
    "RN101": Released(
        f"{_OPENAI}/8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599/RN101.pt",
        ("timm/resnet101_clip.openai",),
    ),
    "RN50x4": Released(
        f"{_OPENAI}/7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd/RN50x4.pt",
        ("timm/resnet50x4_clip.openai",),
    ),
    "RN50x16": Released(
        f"{_OPENAI}/52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa/RN50x16.pt",
        ("timm/resnet50x16_clip.openai",),
    ),
    "RN50x64": Released(
        f"{_OPENAI}/be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c/RN50x64.pt",
        ("timm/resnet50x64_clip.openai",),
    ),
    "ViT-B/32": Released(
        f"{_OPENAI}/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
        ("openai/clip-vit-base-patch32", "timm/vit_base_patch32_clip_224.openai"),
    ),
    "ViT-B/16": Released(
        f"{_OPENAI}/5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt",
        ("openai/clip-vit-base-patch16", "timm/vit_base_patch16_clip_224.openai"),
    ),
    "ViT-L/14": Released(
        f"{_OPENAI}/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
        ("openai/clip-vit-large-patch14", "timm/vit_large_patch14_clip_224.openai"),
    ),
    "ViT-L/14@336px": Released(
        f"{_OPENAI}/3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
        ("openai/clip-vit-large-patch14-336", "timm/vit_large_patch14_clip_336.openai"),
    ),
}


def download_released(released: Released, folder: Path) -> Path:
    """Returns the path of OpenAI's file, downloaded unless it is there with the right digest.

    Args:
        released: which one.
        folder: where to keep it, made if needed.

    Raises:
        ValueError: what came has another digest, or nothing came; nothing is kept then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / released.url.rpartition("/")[2]
    if path.is_file():
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == released.sha256:
                return path
    try:
        torch.hub.download_url_to_file(released.url, str(path), hash_prefix=released.sha256)
    except (RuntimeError, urllib.error.URLError) as error:
        raise ValueError(f"{released.url} could not be downloaded: {error}") from error
    return path


@dataclass
class Verification:
    """What was found of a released checkpoint.

    Args:
        num_parameters: of the model.
        comparisons: of our conversion of OpenAI's file with each original, by the file that the original read.
        differences: what in a copy, as this package reads it, is not as in OpenAI's file, by the copy.
    """

    num_parameters: int
    comparisons: dict[str, Comparison]
    differences: dict[str, list[str]]


def verify_released(released: Released, folder: Path) -> Verification:
    """Returns what was found of a released checkpoint.

    OpenAI's file is converted to this package's layout, and the result compared with what OpenCLIP computes from the
    file, and with what the implementations of the copies compute from the copies. Each copy is also read by this
    package, and its weights, preprocessing and tokenizer compared with those of the file.

    Args:
        released: which one.
        folder: where to keep what is downloaded.

    Raises:
        ValueError: a digest or a comparison of features fails.
    """
    path = download_released(released, folder)
    checkpoint = read_checkpoint(str(path))
    with torch.device("meta"):
        num_parameters = ClipHfModel(checkpoint.config).num_parameters()
    sources, differences = [Files(str(path), "openai")], {}
    with tempfile.TemporaryDirectory(dir=folder) as converted:
        write_checkpoint(checkpoint, Path(converted) / "clip_hf", "clip_hf")
        target = Files(str(Path(converted) / "clip_hf"), "clip_hf")
        for place in released.copies:
            copy = read_checkpoint(place)
            sources.append(Files(place, copy.layout))
            differences[place] = _differences(checkpoint, copy)
            del copy  # a comparison opens two models, one after the other
        checkpoint.weights.clear()
        comparisons = {source.place: compare(source, target, checkpoint.config) for source in sources}
    return Verification(num_parameters, comparisons, differences)


def _differences(released: Checkpoint, copy: Checkpoint) -> list[str]:
    """Returns what in a copy is not OpenAI's: weights, whose types may differ, preprocessing, tokenizer."""
    differences = []
    tensors = [(name, tensor, copy.weights.get(name)) for name, tensor in released.weights.items()]
    changed = [name for name, one, other in tensors if other is None or not one.float().equal(other.float())]
    if changed:
        differences.append(f"{len(changed)} of {len(tensors)} weights, {changed[0]} the first of them")
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8, generator=generator)
    pixels = [
        checkpoint.image_processor(image, return_tensors="pt")["pixel_values"] for checkpoint in (released, copy)
    ]
    if not torch.equal(*pixels):
        differences.append("preprocessing")
    if copy.tokenizer is not None and not is_openai_vocabulary(copy.tokenizer):
        differences.append("tokenizer")
    return differences
