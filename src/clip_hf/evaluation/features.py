"""Features of a data set, computed once for a model and kept on disk.

Images are taken in chunks of a fixed number. The file of a chunk is named after a digest of all that its features
depend on: the contents of its images, the weights, what prepares the images, the code of this package, the versions
of the libraries. What changed has another name, so a stale file is never read, and what did not change is never
computed again, whatever else did. Processes share the chunks among themselves and must see the same folder.

Equal images, and equal texts, have equal features to the last bit, wherever in the data set they stand.

Features are float32, of which the last bits depend on the device and, as the libraries choose their kernels by it, on
the batch size: 2e-7 of a unit embedding. Chunks are divided into batches alike whatever the number of processes, and
what is on disk stays as it was first computed.

Shapes: N images or texts, D width of the features.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
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
from clip_hf.evaluation import embedding
from clip_hf.evaluation.embedding import Embedder, fingerprint
from clip_hf.model import image_decoding_clip_hf
from clip_hf.model.image_decoding_clip_hf import ImageDecodingError, decode_image

IMAGES_PER_CHUNK = 512
TEXTS_PER_CHUNK = 8192
VERSIONS = ("clip_hf", "torch", "transformers", "tokenizers", "sentencepiece", "ftfy", "pillow")
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
        bare: names of those that were left out for want of a text.
    """

    places: list[int]
    ids: list[str]
    texts: list[list[str]]
    features: Tensor
    broken: list[dict[str, str]]
    bare: list[str] = []

    def with_texts(self, is_text: Callable[[str], object] = bool) -> "ImageFeatures":
        """Returns the images that have a text; the others are then the bare ones.

        Args:
            is_text: whether a text is one, such as the label of a class.

        Raises:
            ValueError: no image has one.
        """
        texts = [[text for text in some if is_text(text)] for some in self.texts]
        whole = [row for row, some in enumerate(texts) if some]
        if not whole:
            raise ValueError(f"not one of {len(self.ids)} images has a text")
        return ImageFeatures(
            [self.places[row] for row in whole],
            [self.ids[row] for row in whole],
            [texts[row] for row in whole],
            self.features[whole] if len(whole) < len(self.ids) else self.features,
            self.broken,
            [id_ for id_, some in zip(self.ids, texts, strict=True) if not some],
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
        digests = [digest for chunk in chunks for digest in chunk.digests]
        features = _read_all([chunk.file for chunk in chunks if chunk.places], len(digests))
        first: dict[bytes, int] = {}
        for row, digest in enumerate(digests):
            if (same := first.setdefault(digest, row)) != row:
                features[row] = features[same]
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
        features = _read_all(files, len(unique))
        return features if len(unique) == len(texts) else features[index]

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
            _write(file, *self._embed([image for _, image in inputs], before_projection))
        unread = _read_unread(file)
        broken += [{"id": inputs[int(row)][1].id, "reason": reason} for row, reason in unread.items()]
        whole = [row for row in range(len(inputs)) if str(row) not in unread]
        return _Chunk(
            file,
            [inputs[row][0] for row in whole],
            [inputs[row][1].id for row in whole],
            [texts[row] for row in whole],
            [digests[row] for row in whole],
            broken,
        )

    def _embed(self, images: list[ImageInput], before_projection: bool) -> tuple[Tensor, dict[str, str]]:
        """Returns the features of the images that decode, and the reasons of the others by their row."""
        # Two tar files may both have a 0001: the embedder is given names that no two images share.
        names = {f"{image.id}#{row}": row for row, image in enumerate(images)}
        named = [ImageInput(name, image.value) for name, image in zip(names, images, strict=True)]
        _, features, broken = self.embedder.embed_images(named, before_projection)
        unread = {names[entry["id"]]: entry for entry in broken}
        return features, {
            str(row): entry["reason"].replace(entry["id"], images[row].id) for row, entry in unread.items()
        }

    def _text_chunk(self, texts: list[str]) -> Path:
        file = self._file("text", texts)
        if file.is_file():
            self.embedder.advance(len(texts))
        else:
            _write(file, self.embedder.embed_texts(texts), {})
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
        "code": _digest_code(),
        "versions": {package: _version(package) for package in VERSIONS},
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


@cache
def _digest_code() -> str:
    """Returns a digest of the code that features come from: between two releases it changes under one version."""
    folder = Path(image_decoding_clip_hf.__file__).parent
    digest = hashlib.blake2b(digest_size=16)
    for file in [*sorted(folder.glob("*.py")), Path(embedding.__file__), Path(__file__)]:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    if not hasattr(tokenizer, "backend_tokenizer"):  # SigLIP's, of SentencePiece
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(file) for file in tokenizer.save_vocabulary(folder)]
            rules: dict[str, Any] = {file.name: hashlib.blake2b(file.read_bytes()).hexdigest() for file in files}
        options = {
            name: value for name, value in tokenizer.init_kwargs.items() if "file" not in name and "path" not in name
        }
        return rules | {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab(), "options": options}
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # what the last call asked for
        rules.pop(state)
    return rules | {"model_max_length": tokenizer.model_max_length}


def digest_image(image: Any) -> bytes:
    """Returns a digest of an image's file, or of its pixels, upright and in RGB, where it has none.

    Args:
        image: path, bytes or PIL image.
    """
    content = b""  # of what does not open: whoever decodes it says what is wrong
    if isinstance(image, PillowImage):
        try:
            decoded = decode_image(image)
            content = f"{decoded.size}".encode() + decoded.tobytes()
        except ImageDecodingError:
            pass
    elif isinstance(image, bytes):
        content = image
    elif Path(image).is_file():
        content = Path(image).read_bytes()
    return hashlib.blake2b(content, digest_size=16).digest()


def _share(items: Sequence[Any], compute: Callable[[Any], T]) -> list[T]:
    """Returns `compute` of every item, each computed by one process."""
    mine = [compute(item) for item in items[rank() :: world_size()]]
    if world_size() == 1:
        return mine
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, mine)
    return [gathered[number % world_size()][number // world_size()] for number in range(len(items))]


def _write(file: Path, features: Tensor, unread: dict[str, str]) -> None:
    partial_file = file.with_suffix(f".partial-{os.getpid()}")
    save_file({"features": features.contiguous()}, partial_file, {"unread": json.dumps(unread)})
    partial_file.replace(file)


def _read_all(files: Sequence[Path], num_rows: int) -> Tensor:
    """Returns the features of files one after the other; holds them and one file's more."""
    features, row = torch.empty(0, 0), 0
    for file in files:
        some = load_file(file)["features"]
        if not row:
            features = some.new_empty(num_rows, some.shape[1])
        features[row : row + len(some)] = some
        row += len(some)
    assert row == num_rows
    return features


def _read_unread(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as content:
        return json.loads(content.metadata()["unread"])
