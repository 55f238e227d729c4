"""Small checkpoints in the files of every layout."""

from pathlib import Path

from clip_hf.conversion.reading import Checkpoint, read_checkpoint
from clip_hf.conversion.writing import write_checkpoint
from tests.open_clip_folders import small_tokenizer
from tests.openai_weights import openai_weights, save_archive

# transformers' CLIP has no ResNet.
LAYOUTS = {"vit": ("clip_hf", "transformers", "open_clip", "openai"), "resnet": ("clip_hf", "open_clip", "openai")}


def tiny_checkpoint(folder: Path, tower: str, seed: int = 0) -> Checkpoint:
    """Returns a checkpoint read from an archive as OpenAI releases them, and a tokenizer for it."""
    save_archive(openai_weights(tower, seed), folder / "archive.pt")
    small_tokenizer().save_pretrained(folder / "tokenizer")
    return read_checkpoint(str(folder / "archive.pt"), tokenizer=str(folder / "tokenizer"))


def write_all_layouts(folder: Path, tower: str, seed: int = 0) -> dict[str, Path]:
    """Writes a tiny checkpoint in every layout and returns where each is."""
    checkpoint = tiny_checkpoint(folder, tower, seed)
    paths = {}
    for layout in LAYOUTS[tower]:
        paths[layout] = folder / ("openai.pt" if layout == "openai" else layout)
        write_checkpoint(checkpoint, paths[layout], layout)
    return paths
