"""Examples to model inputs: images cropped to uint8 pixels, captions chosen, batches padded to their longest text.

Shapes: B images, T texts, S image size in pixels, L tokens.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from clip_hf.data.augmentation import Augmentation, evaluation_pixels, training_pixels
from clip_hf.data.sources import Examples, captions_of
from clip_hf.data.training_pairs import BROKEN_SAMPLE_ERRORS
from clip_hf.model.image_decoding_clip_hf import ImageDecodingError

MOST_NAMED = 20


class ImageTextPairs(Dataset):
    """Examples prepared for the model, the pixels left raw: the model normalises them on its own device.

    In training, a random square is cut from the resized image, the paper's one augmentation (section 2.3), and one of
    several captions is chosen; both depend on seed, epoch and index alone, whatever process or worker reads them. In
    evaluation it is the central square and all captions.

    Args:
        examples: what to prepare.
        processor: resizes images.
        mode: "training" or "evaluation".
        seed: of the crops and the choice of captions.
    """

    def __init__(
        self,
        examples: Examples,
        processor: ProcessorMixin,
        mode: Literal["training", "evaluation"],
        seed: int = 0,
    ) -> None:
        self.examples = examples
        self.image_processor = processor.image_processor
        self.mode = mode
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Makes the next epoch's crops and captions; the trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns "pixel_values" (3, S, S) in uint8, "texts", and "sample_id", the file's name or the index."""
        example = self.examples[index]
        image, name = example["image"], example.get("sample_id", str(index))
        if isinstance(image, dict):
            image, name = image["bytes"] or image["path"], image["path"] or name
        captions = captions_of(example)
        if not captions:
            raise ValueError(f"{name} has no caption")
        if self.mode == "evaluation":
            try:
                pixels = evaluation_pixels(image, self.image_processor)
            except ImageDecodingError as error:
                raise ValueError(f"{name}: {error}") from error
            return {"pixel_values": pixels, "texts": captions, "sample_id": name}
        rng = random.Random(f"{self.seed} {self.epoch} {index}")
        pixels = training_pixels(image, name, self.image_processor, Augmentation(), rng)
        return {"pixel_values": pixels, "texts": [rng.choice(captions)], "sample_id": name}

    def check(
        self,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        gather: Callable[[list[str]], list[str]] = list,
    ) -> None:
        """Prepares a process's share of the examples once: a broken one would else end a run at its first evaluation.

        Args:
            rank: of the process.
            world_size: number of processes.
            num_workers: processes that prepare.
            gather: joins the lists of all processes, so that all raise or none.

        Raises:
            ValueError: on every process, if examples are broken; the message says which.
        """
        complaints = _Complaints(self, range(rank, len(self), world_size))
        # A generator, or torch's own would be drawn from.
        loader = DataLoader(complaints, batch_size=None, num_workers=num_workers, generator=torch.Generator())
        bar = tqdm(loader, desc="Checking the evaluation set", disable=rank > 0, leave=False)
        broken = gather([complaint for complaint in bar if complaint])
        if broken:
            more = f"; and {len(broken) - MOST_NAMED} more" if len(broken) > MOST_NAMED else ""
            raise ValueError(
                f"{len(broken)} of {len(self)} samples to evaluate are broken, and figures without them would "
                f"be of another set: repair them, or leave them out of it. {'; '.join(broken[:MOST_NAMED])}{more}"
            )


class _Complaints(Dataset):
    """What is wrong with each of some examples, nothing if it is whole."""

    def __init__(self, pairs: ImageTextPairs, indices: Sequence[int]) -> None:
        self.pairs, self.indices = pairs, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> str:
        try:
            _ = self.pairs[self.indices[number]]
        except BROKEN_SAMPLE_ERRORS as error:
            return str(error) or type(error).__name__
        return ""


class ImageTextCollator:
    """Makes a batch of the pairs of `ImageTextPairs`.

    Args:
        processor: its tokenizer encodes the texts of a batch, padded to the longest and cut to the context length.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        self.tokenizer = processor.tokenizer

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> dict[str, Tensor | list[str]]:
        """Returns a batch.

        Returns:
            `pixel_values` (B, 3, S, S) in uint8, `input_ids` (T, L) of the first image's texts, then of the second's,
            `num_texts` (B,), of each image, and `sample_ids`, a list of B names.
        """
        texts = [text for pair in pairs for text in pair["texts"]]
        return {
            "pixel_values": torch.stack([pair["pixel_values"] for pair in pairs]),
            "input_ids": self.tokenizer(texts, padding=True, return_tensors="pt")["input_ids"],
            "num_texts": torch.tensor([len(pair["texts"]) for pair in pairs]),
            "sample_ids": [pair["sample_id"] for pair in pairs],
        }
