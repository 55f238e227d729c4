"""Embeddings of many images or texts, written to Parquet files that a second run completes.

The rows are divided into files of equal size, by their order alone. A file is written under another name and then
renamed, so it is there as a whole or not at all; processes share the files among themselves and never wait for each
other. What is missing after a crash is missing as whole files, whichever processes run next.

Shapes: B batch, L tokens, E joint embedding.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from transformers import BatchFeature, PreTrainedModel

from clip_hf.distributed import rank, world_size
from clip_hf.model.image_sources_clip_hf import decode_source
from clip_hf.model.normalization_clip_hf import require_same_normalization
from clip_hf.model.zero_shot_clip_hf import image_feature_options, text_feature_options, warn_of_cut_texts

Modality = Literal["image", "text"]
DESCRIPTION_FILE = "embedding.json"
BROKEN_FILE = "broken.jsonl"
FILES = ("image-*.parquet", "text-*.parquet", "*.broken")


class Input(Protocol):
    """An image (path or bytes) or a text, with its id."""

    @property
    def id(self) -> str:
        """Returns its name."""

    @property
    def value(self) -> Any:
        """Returns the image or the text."""


class Embedder:
    """Turns images and texts into unit embeddings.

    Args:
        model: a `ClipHfModel`, or one of transformers' with its methods, such as `CLIPModel` and `SiglipModel`.
        image_processor: makes `pixel_values`; None if there are no images.
        tokenizer: makes `input_ids`; None if there are no texts.
        batch_size: images or texts at a time.
        num_workers: processes that decode images.
        advance: called with the number of images or texts after each batch.

    Raises:
        ValueError: the model, which normalises its images itself, does it otherwise than the image processor.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        image_processor: Any,
        tokenizer: Any,
        batch_size: int = 64,
        num_workers: int = 0,
        advance: Callable[[int], object] = lambda number: None,
    ) -> None:
        if image_processor is not None and model.config.model_type == "clip_hf":
            require_same_normalization(model.config.vision_config, image_processor)
        self.model = model.eval()
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.advance = advance
        self._image_options = image_feature_options(model)

    @torch.inference_mode()
    def embed_images(
        self, images: Sequence[Input] | Subset, before_projection: bool = False
    ) -> tuple[list[str], Tensor, list[dict[str, str]]]:
        """Returns the ids of the images that decode, their embeddings (B, E), and id and reason of the others.

        Args:
            images: B images.
            before_projection: return the image tower's features (B, D) as they are, not projected and not normalised.
        """
        raw = {"do_rescale": False, "do_normalize": False} if self.model.config.model_type == "clip_hf" else {}
        loader: DataLoader[Any] = DataLoader(
            images,  # type: ignore[arg-type]
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=partial(_prepare_images, image_processor=self.image_processor, options=raw),
        )
        ids, embeds, broken = [], [], []
        for batch_ids, pixel_values, batch_broken in loader:
            ids += batch_ids
            broken += batch_broken
            self.advance(len(batch_ids) + len(batch_broken))
            if pixel_values:
                pixels = torch.cat(pixel_values).to(self.model.device)
                pixels = pixels.to(self.model.dtype) if pixels.is_floating_point() else pixels
                if before_projection:
                    features = self.model.vision_model(pixel_values=pixels, **self._image_options)
                    embeds.append(features.pooler_output.float().cpu())
                else:
                    embeds.append(_unit(self.model.get_image_features(pixel_values=pixels, **self._image_options)))
        return ids, torch.cat(embeds) if embeds else torch.empty(0, embedding_size(self.model)), broken

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Returns (B, E); texts are embedded in the order of their lengths and beginnings.

        SigLIP alone was trained on texts padded to one length, and without a mask of the padding.
        """
        if not texts:
            return torch.empty(0, embedding_size(self.model))
        length = min(self.tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)
        is_siglip = self.model.config.model_type == "siglip"
        padding = {"padding": "max_length", "max_length": length} if is_siglip else {}
        encoding = self.tokenizer(list(texts), truncation=True, max_length=length)
        warn_of_cut_texts(encoding, length)
        ids = encoding["input_ids"]
        order = sorted(range(len(ids)), key=lambda place: (len(ids[place]), ids[place]))
        embeds = []
        for start in range(0, len(order), self.batch_size):
            batch = {"input_ids": [ids[place] for place in order[start : start + self.batch_size]]}
            inputs = self.tokenizer.pad(batch, return_tensors="pt", **padding).to(self.model.device)
            if is_siglip:
                inputs.pop("attention_mask", None)
            options = text_feature_options(self.model, inputs["input_ids"])
            embeds.append(_unit(self.model.get_text_features(**inputs, **options)))
            self.advance(len(batch["input_ids"]))
        return torch.empty(len(order), embeds[0].shape[1]).index_copy_(0, torch.tensor(order), torch.cat(embeds))


def _prepare_images(
    images: Sequence[Input], image_processor: Any, options: dict[str, Any]
) -> tuple[list[str], list[Tensor], list[dict[str, str]]]:
    """Returns ids and pixels (1, 3, H, W) of the images that decode, id and reason of the others."""
    ids, pixel_values, broken = [], [], []
    for one in images:
        try:
            if isinstance(one.value, ValueError):  # its row cannot be read
                raise one.value
            image = decode_source(one.value, one.id)
        except (ValueError, TypeError) as error:
            broken.append({"id": one.id, "reason": str(error) if one.id in str(error) else f"{one.id}: {error}"})
            continue
        ids.append(one.id)
        pixel_values.append(image_processor(image, return_tensors="pt", **options)["pixel_values"])
    return ids, pixel_values, broken


def _unit(features: BatchFeature) -> Tensor:
    return torch.nn.functional.normalize(features.pooler_output.float(), dim=-1).cpu()


def embedding_size(model: PreTrainedModel) -> int:
    """Returns the width E of the space that a model's images and texts share."""
    config = model.config
    return config.projection_dim if hasattr(config, "projection_dim") else config.vision_config.hidden_size


def fingerprint(model: PreTrainedModel) -> str:
    """Returns a digest of all weights: two models that differ in one number have different ones."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def open_run(output_dir: Path, description: dict[str, Any]) -> None:
    """Starts a run in a folder, or goes on with the same one.

    Args:
        output_dir: made if needed.
        description: everything that the embeddings depend on.

    Raises:
        ValueError: the folder holds embeddings of another run, the message says what differs; or files that would be
            taken for this run's, and no word of what they were made of.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    file = output_dir / DESCRIPTION_FILE
    # Looked for first: whichever process writes one has seen to the description before.
    found_files = sorted(one.name for pattern in FILES for one in output_dir.glob(pattern))
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        names = sorted(name for name in description | found if description.get(name) != found.get(name))
        if names:
            differences = "; ".join(f"{name}: {found.get(name)!r}, now {description.get(name)!r}" for name in names)
            raise ValueError(f"{output_dir} holds embeddings of another run ({differences}): choose another folder")
    elif found_files:
        raise ValueError(
            f"{output_dir} holds {found_files[0]}, but no {DESCRIPTION_FILE} that says what it was made of: choose "
            "another folder"
        )
    else:
        write_text(file, json.dumps(description, indent=2) + "\n")


def write_embeddings(
    embedder: Embedder, inputs: Sequence[Input], modality: Modality, output_dir: Path, shard_size: int = 10_000
) -> None:
    """Writes this process's share of the files `<modality>-00000.parquet`, ..., leaving out those that are there.

    A file has the columns `id` (string) and `embedding` (E float32, unit length). Beside each stands a list of the
    images and texts that could not be read, which `collect_broken` puts together.

    Args:
        embedder: the model and what prepares its inputs.
        inputs: all rows, the same on every process.
        modality: "image" or "text".
        output_dir: the run's folder.
        shard_size: rows of a file.
    """
    files = [output_dir / f"{modality}-{shard:05d}.parquet" for shard in range(-(-len(inputs) // shard_size))]
    mine = [shard for shard in range(rank(), len(files), world_size()) if not files[shard].exists()]
    for shard in mine:
        places = range(shard * shard_size, min((shard + 1) * shard_size, len(inputs)))
        if modality == "image":
            ids, embeds, broken = embedder.embed_images(Subset(inputs, places))  # type: ignore[arg-type]
        else:
            ids, embeds, broken = _embed_whole_texts(embedder, [inputs[place] for place in places])
        lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in broken)
        write_text(files[shard].with_suffix(".broken"), lines)  # first: a table that is there is complete
        _write_table(files[shard], ids, embeds)


def _embed_whole_texts(embedder: Embedder, rows: list[Input]) -> tuple[list[str], Tensor, list[dict[str, str]]]:
    """Returns ids and embeddings of the rows that are texts, id and reason of the others."""
    texts, broken = [], []
    for row in rows:
        if isinstance(row.value, str) and row.value.strip():
            texts.append(row)
        else:
            reason = str(row.value) if isinstance(row.value, ValueError) else f"{row.value!r:.80} is no text"
            broken.append({"id": row.id, "reason": f"{row.id}: {reason}"})
    embedder.advance(len(broken))
    embeds = embedder.embed_texts([text.value for text in texts])
    return [text.id for text in texts], embeds, broken


def collect_broken(output_dir: Path) -> list[dict[str, str]]:
    """Returns id and reason of all that could not be read, and writes them to broken.jsonl."""
    files = sorted(output_dir.glob("*.broken"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").split("\n") if line]
    write_text(output_dir / BROKEN_FILE, "".join(f"{line}\n" for line in lines))
    return [json.loads(line) for line in lines]


def read_embeddings(output_dir: Path, modality: Modality) -> Iterator[pyarrow.Table]:
    """Yields the tables of a run, in the order of their rows."""
    for file in sorted(output_dir.glob(f"{modality}-*.parquet")):
        yield pyarrow.parquet.read_table(file)


def write_text(file: Path, text: str) -> None:
    """Writes a text file as a whole or not at all.

    Args:
        file: to be replaced if it is there.
        text: its content. JSON that holds names of files which are no UTF-8 is still JSON in the file: there, too, a
            backslash escapes what cannot be written.
    """
    partial_file = file.with_suffix(f".partial-{rank()}-{os.getpid()}")
    partial_file.write_text(text, encoding="utf-8", errors="backslashreplace")
    partial_file.replace(file)


def _write_table(file: Path, ids: list[str], embeds: Tensor) -> None:
    values = pyarrow.array(embeds.numpy().ravel(), type=pyarrow.float32())
    embedding = pyarrow.FixedSizeListArray.from_arrays(values, embeds.shape[1])
    names = pyarrow.array([id_.encode(errors="backslashreplace") for id_ in ids], pyarrow.string())
    partial_file = file.with_suffix(f".partial-{os.getpid()}")
    pyarrow.parquet.write_table(pyarrow.table({"id": names, "embedding": embedding}), partial_file)
    partial_file.replace(file)
