"""Pairs of noise for tests of training, the same in every process."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clip_hf import ClipHfConfig
from tests.tiny_models import random_ids


class TinyPairs(Dataset):
    """Random images and texts of different lengths, each pair with a name."""

    def __init__(self, config: ClipHfConfig, num_pairs: int) -> None:
        generator = torch.Generator().manual_seed(0)
        size = config.vision_config.image_size
        self.pixel_values = torch.randint(0, 256, (num_pairs, 3, size, size), generator=generator, dtype=torch.uint8)
        self.input_ids = random_ids(config, num_pairs)

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "pixel_values": self.pixel_values[index],
            "input_ids": self.input_ids[index],
            "sample_id": f"pair-{index}",
        }


class TinyCaptions(TinyPairs):
    """The same images with one text each, but for every other four, which have five each."""

    def __init__(self, config: ClipHfConfig, num_pairs: int) -> None:
        super().__init__(config, num_pairs)
        self.captions = random_ids(config, 5 * num_pairs).view(num_pairs, 5, -1)

    def __getitem__(self, index: int) -> dict[str, Any]:
        num_texts = 5 if index // 4 % 2 else 1
        return super().__getitem__(index) | {"input_ids": self.captions[index, :num_texts]}


def collate(pairs: list[dict[str, Any]]) -> dict[str, Tensor | list[str]]:
    return {
        "pixel_values": torch.stack([pair["pixel_values"] for pair in pairs]),
        "input_ids": torch.stack([pair["input_ids"] for pair in pairs]),
        "sample_ids": [pair["sample_id"] for pair in pairs],
    }


def collate_captions(images: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {
        "pixel_values": torch.stack([image["pixel_values"] for image in images]),
        "input_ids": torch.cat([image["input_ids"] for image in images]),
        "num_texts": torch.tensor([len(image["input_ids"]) for image in images]),
    }
