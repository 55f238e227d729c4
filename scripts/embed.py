"""Embeds the images and texts of a folder, a file or a dataset into Parquet files; a second run completes the first.

python scripts/embed.py --model outputs/demo/model --data photos --output_dir outputs/embeddings
torchrun --nproc_per_node 8 scripts/embed.py --model me/my-clip --data captions.jsonl --modality text --output_dir out
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch.distributed as dist
from tqdm import tqdm

import clip_hf  # noqa: F401  registers the model classes
from clip_hf.data.inputs import Columns, fingerprint_inputs, load_inputs
from clip_hf.distributed import rank, world_size
from clip_hf.evaluation.embedding import collect_broken, open_run, write_embeddings
from clip_hf.evaluation.features import digest_parts
from clip_hf.evaluation.setup import check_options, open_embedder, run


@dataclass
class EmbedArguments:
    """What to embed, with which model, and how."""

    model: str = field(metadata={"help": "Checkpoint folder or Hub repository."})
    data: str = field(metadata={"help": "Folder, .txt, .jsonl, .csv, .tsv or .parquet file, or Hub dataset."})
    output_dir: Path = field(metadata={"help": "Folder of the Parquet files."})
    modality: Literal["image", "text", "both"] = field(default="image", metadata={"help": "What to embed."})
    image_column: str | None = field(default=None, metadata={"help": "Column of images; by default a usual name."})
    text_column: str | None = field(default=None, metadata={"help": "Column of texts; by default a usual name."})
    id_column: str | None = field(default=None, metadata={"help": "Column of unique ids; by default a usual name."})
    split: str = field(default="train", metadata={"help": "Split of a Hub dataset."})
    limit: int | None = field(default=None, metadata={"help": "Only so many images, and so many texts."})
    batch_size: int = field(default=64, metadata={"help": "Images or texts at a time."})
    num_workers: int = field(default=2, metadata={"help": "Processes that decode images, for each process."})
    shard_size: int = field(default=10_000, metadata={"help": "Rows of a Parquet file."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Precision of the weights; embeddings are always float32."}
    )
    device: str | None = field(default=None, metadata={"help": "Such as cpu or cuda:1; by default a GPU if there is."})

    def __post_init__(self) -> None:
        """Raises ValueError for a number that is too small, or a device that cannot be used."""
        check_options(self)


def main(args: EmbedArguments) -> None:
    """Embeds, then lists what could not be read."""
    columns = Columns(args.image_column, args.text_column, args.id_column)
    modalities = ("image", "text") if args.modality == "both" else (args.modality,)
    inputs = {modality: load_inputs(args.data, modality, columns, args.split) for modality in modalities}
    inputs = {modality: rows[: args.limit] if args.limit else rows for modality, rows in inputs.items()}
    embedder = open_embedder(args, modalities)
    progress = tqdm(total=-(-sum(map(len, inputs.values())) // world_size()), disable=rank() != 0, desc="Embedding")
    embedder.advance = progress.update
    description = digest_parts(embedder) | {"dtype": args.dtype, "data": args.data, "shard_size": args.shard_size}
    description |= {"split": args.split, **columns._asdict()}
    description |= {f"num_{modality}s": len(rows) for modality, rows in inputs.items()}
    description |= {f"{modality}_inputs": fingerprint_inputs(rows, modality) for modality, rows in inputs.items()}
    open_run(args.output_dir, description)
    for modality, rows in inputs.items():
        write_embeddings(embedder, rows, modality, args.output_dir, args.shard_size)
    progress.close()
    if world_size() > 1:
        dist.barrier()
    if rank() == 0:
        broken = collect_broken(args.output_dir)
        print(f"{args.output_dir}: {', '.join(f'{len(rows)} {modality}s' for modality, rows in inputs.items())}")
        if broken:
            print(f"{len(broken)} of them could not be read, see {args.output_dir / 'broken.jsonl'}; the first:")
            print(f"    {broken[0]['reason']}")


if __name__ == "__main__":
    run(main, EmbedArguments, __doc__)
