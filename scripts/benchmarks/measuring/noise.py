"""Pairs of noise, in memory and in files, and a small model for them, where the content changes no time."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from clip_hf import ClipHfConfig


def small_config(width: int, num_layers: int, image_size: int, patch_size: int) -> ClipHfConfig:
    """Returns a CLIP of two equal towers.

    Args:
        width: of both towers and the joint embedding space.
        num_layers: of each tower.
        image_size: side of the images in pixels.
        patch_size: side of a patch in pixels.
    """
    tower = {"hidden_size": width, "num_hidden_layers": num_layers}
    vision_config = tower | {"image_size": image_size, "patch_size": patch_size}
    return ClipHfConfig(projection_dim=width, text_config=tower, vision_config=vision_config)


class NoisePairs(Dataset):
    """Random images and texts; a batch is taken as a whole, without a copy of it in parts."""

    def __init__(self, config: ClipHfConfig, num_pairs: int) -> None:
        text, size = config.text_config, config.vision_config.image_size
        self.pixel_values = torch.randint(0, 256, (num_pairs, 3, size, size), dtype=torch.uint8)
        longest = text.max_position_embeddings
        self.input_ids = torch.randint(0, text.bos_token_id, (num_pairs, longest))
        # Web captions are about a dozen tokens long, some much longer.
        ends = torch.empty(num_pairs, 1).log_normal_(2.5, 0.6).clamp(2, longest - 1).long()
        self.input_ids[torch.arange(longest) >= ends] = text.eos_token_id

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitems__(self, indices: list[int] | slice) -> dict[str, Tensor]:
        return {"pixel_values": self.pixel_values[indices], "input_ids": self.input_ids[indices]}


def write_shard(file: Path, images: Sequence[bytes], text: str) -> None:
    """Writes a tar file of JPEG images, all with the same caption, as WebDataset names them."""
    with tarfile.open(file, "w") as archive:
        for sample, image in enumerate(images):
            for ending, content in (("jpg", image), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{sample:06}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def write_noise_shards(folder: Path, number: int, size: int) -> str:
    """Writes tar files of 32-pixel JPEG images with captions, links to one, and returns the pattern of their names.

    Args:
        folder: that is there.
        number: of files.
        size: samples in each.
    """
    buffer = io.BytesIO()
    Image.effect_noise((32, 32), 50).convert("RGB").save(buffer, "JPEG")
    write_shard(folder / "0000.tar", [buffer.getvalue()] * size, "noise")
    for shard in range(1, number):
        (folder / f"{shard:04}.tar").hardlink_to(folder / "0000.tar")
    return f"{folder}/{{0000..{number - 1:04}}}.tar"
