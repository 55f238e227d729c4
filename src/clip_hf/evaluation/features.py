"""Features of a data set, computed once for a model and kept on disk.

Images are taken in chunks of a fixed number. The file of a chunk is named after a digest of all that its features
depend on: the contents of its images, the weights, what prepares the images, the versions of the libraries. What
changed has another name, so a stale file is never read, and what did not change is never computed again, whatever else
did. Processes share the chunks among themselves and must see the same folder.

Equal images, and equal texts, have equal features to the last bit, wherever in the data set they stand.

Shapes: N images or texts, D width of the features.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from PIL.Image import Image as PillowImage
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from clip_hf.distributed import rank, world_size
from clip_hf.evaluation.embedding import Embedder, fingerprint

IMAGES_PER_CHUNK = 512
TEXTS_PER_CHUNK = 8192
VERSIONS = ("clip_hf", "torch", "transformers", "tokenizers", "pillow")
T = TypeVar("T")


class Samples(Protocol):
    """Images with texts, which may be captions or the name of a class."""

    def __len__(self) -> int:
        """Returns the number of images."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns "sample_id", "image" (path, bytes or PIL image) and "captions"; raises ValueError if damaged."""

    def sample_id(self, index: int) -> str:
        """Returns the name of a sample, damaged or not."""


class ImageInput(NamedTuple):
    """An image to embed, with its name."""

    id: str
    value: Any


class ImageFeatures(NamedTuple):
    """The images of a data set that could be read.

    Args:
        places: N indices into the data set.
        ids: N names.
        texts: N lists of captions.
        features: (N, D), float32.
        broken: "id" and "reason" of the others.
    """

    places: list[int]
    ids: list[str]
    texts: list[list[str]]
    features: Tensor
    broken: list[dict[str, str]]

    def with_texts(self) -> "ImageFeatures":
        """Returns the images that have a text; the others are then among the broken ones.

        Raises:
            ValueError: no image has one.
        """
        whole = [row for row, texts in enumerate(self.texts) if texts]
        if not whole:
            raise ValueError(f"not one of {len(self.ids)} images has a text")
        bare = [id_ for id_, texts in zip(self.ids, self.texts, strict=True) if not texts]
        broken = self.broken + [{"id": id_, "reason": f"{id_}: it has no text"} for id_ in bare]
        return ImageFeatures(
            [self.places[row] for row in whole],
            [self.ids[row] for row in whole],
            [self.texts[row] for row in whole],
            self.features[whole],
            broken,
        )


class _Chunk(NamedTuple):
    file: Path
    places: list[int]
    ids: list[str]
    texts: list[list[str]]
    digests: list[bytes]
    broken: list[dict[str, str]]


class FeatureCache:
    """Features from disk, or else from a model.

    Args:
        embedder: the model and what prepares its inputs.
        folder: of the files, made if needed; the same for all processes.
    """

    def __init__(self, embedder: Embedder, folder: Path) -> None:
        self.embedder, self.folder = embedder, folder
        self.model_facts = describe_model(embedder)
        folder.mkdir(parents=True, exist_ok=True)

    def embed_images(self, samples: Samples, before_projection: bool = False) -> ImageFeatures:
        """Returns the features of all images, unit embeddings unless `before_projection`.

        Args:
            samples: the same on every process.
            before_projection: as in `Embedder.embed_images`.

        Raises:
            ValueError: not one image can be read.
        """
        self.embedder.advance = (bar := self._progress("Images", len(samples))).update
        starts = range(0, len(samples), IMAGES_PER_CHUNK)
        places = [range(start, min(start + IMAGES_PER_CHUNK, len(samples))) for start in starts]
        chunks = _share(places, lambda chunk: self._image_chunk(samples, chunk, before_projection))
        bar.close()
        broken = [entry for chunk in chunks for entry in chunk.broken]
        if len(broken) == len(samples):
            raise ValueError(f"not one of {len(samples)} images can be read; the first: {broken[0]['reason']}")
        features = torch.cat([_read(chunk.file) for chunk in chunks if chunk.places])
        first: dict[bytes, int] = {}
        digests = (digest for chunk in chunks for digest in chunk.digests)
        features = features[[first.setdefault(digest, row) for row, digest in enumerate(digests)]]
        return ImageFeatures(
            [place for chunk in chunks for place in chunk.places],
            [id_ for chunk in chunks for id_ in chunk.ids],
            [texts for chunk in chunks for texts in chunk.texts],
            features,
            broken,
        )

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Returns the unit embeddings (N, D) of texts."""
        rows: dict[str, int] = {}
        index = [rows.setdefault(text, len(rows)) for text in texts]
        unique = list(rows)
        self.embedder.advance = (bar := self._progress("Texts", len(unique))).update
        chunks = [unique[start : start + TEXTS_PER_CHUNK] for start in range(0, len(unique), TEXTS_PER_CHUNK)]
        files = _share(chunks, self._text_chunk)
        bar.close()
        return torch.cat([_read(file) for file in files])[index]

    def _progress(self, what: str, number: int) -> tqdm:
        return tqdm(total=-(-number // world_size()), disable=rank() != 0, desc=what)

    def _image_chunk(self, samples: Samples, places: range, before_projection: bool) -> _Chunk:
        inputs, texts, digests, broken = [], [], [], []
        for place in places:
            try:
                sample = samples[place]
            except (ValueError, OSError) as error:
                broken.append({"id": samples.sample_id(place), "reason": str(error)})
                continue
            inputs.append((place, ImageInput(sample["sample_id"], sample["image"])))
            texts.append(sample["captions"])
            digests.append(digest_image(sample["image"]))
        file = self._file("image", [before_projection, *(image.id for _, image in inputs), *map(bytes.hex, digests)])
        if file.is_file():
            self.embedder.advance(len(places))
        else:
            _, features, unread = self.embedder.embed_images([image for _, image in inputs], before_projection)
            _write(file, features, unread)
        unread = _read_broken(file)
        unread_ids = {entry["id"] for entry in unread}
        whole = [number for number, (_, image) in enumerate(inputs) if image.id not in unread_ids]
        return _Chunk(
            file,
            [inputs[number][0] for number in whole],
            [inputs[number][1].id for number in whole],
            [texts[number] for number in whole],
            [digests[number] for number in whole],
            broken + unread,
        )

    def _text_chunk(self, texts: list[str]) -> Path:
        file = self._file("text", texts)
        if file.is_file():
            self.embedder.advance(len(texts))
        else:
            _write(file, self.embedder.embed_texts(texts), [])
        return file

    def _file(self, modality: str, contents: list[Any]) -> Path:
        digest = hashlib.blake2b(json.dumps([self.model_facts, modality, contents]).encode(), digest_size=16)
        return self.folder / f"{modality}-{digest.hexdigest()}.safetensors"


def describe_model(embedder: Embedder) -> dict[str, Any]:
    """Returns all that features depend on beside the images and texts themselves."""
    model, tokenizer = embedder.model, embedder.tokenizer
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    facts = {
        "class": type(model).__name__,
        "weights": fingerprint(model),
        "config": config,
        "image_processor": embedder.image_processor and embedder.image_processor.to_dict(),
        "tokenizer": tokenizer and _describe_tokenizer(tokenizer),
        "device": model.device.type,
        "versions": {package: version(package) for package in VERSIONS},
    }
    return json.loads(json.dumps(facts, default=str, sort_keys=True))


def digest_parts(embedder: Embedder) -> dict[str, str]:
    """Returns a digest of each part of an embedder that its embeddings depend on, by the part's name."""
    facts = describe_model(embedder)
    parts = {"model": [facts["weights"], facts["config"]]}
    parts |= {name: facts[name] for name in ("image_processor", "tokenizer")}
    return {
        name: hashlib.blake2b(json.dumps(part, sort_keys=True).encode(), digest_size=16).hexdigest()
        for name, part in parts.items()
    }


def _describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # what the last call asked for
        rules.pop(state)
    return rules | {"model_max_length": tokenizer.model_max_length}


def digest_image(image: Any) -> bytes:
    """Returns a digest of an image's file, or of its pixels where it has none.

    Args:
        image: path, bytes or PIL image.
    """
    if isinstance(image, PillowImage):
        content = f"{image.mode} {image.size}".encode() + image.tobytes()
    elif isinstance(image, bytes):
        content = image
    else:
        content = Path(image).read_bytes() if Path(image).is_file() else b""  # whoever decodes it says what is wrong
    return hashlib.blake2b(content, digest_size=16).digest()


def _share(items: Sequence[Any], compute: Callable[[Any], T]) -> list[T]:
    """Returns `compute` of every item, each computed by one process."""
    mine = [compute(item) for item in items[rank() :: world_size()]]
    if world_size() == 1:
        return mine
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, mine)
    return [gathered[number % world_size()][number // world_size()] for number in range(len(items))]


def _write(file: Path, features: Tensor, broken: list[dict[str, str]]) -> None:
    partial_file = file.with_suffix(f".partial-{os.getpid()}")
    save_file({"features": features.contiguous()}, partial_file, {"broken": json.dumps(broken)})
    partial_file.replace(file)


def _read(file: Path) -> Tensor:
    return load_file(file)["features"]


def _read_broken(file: Path) -> list[dict[str, str]]:
    with safe_open(file, "pt") as content:
        return json.loads(content.metadata()["broken"])
