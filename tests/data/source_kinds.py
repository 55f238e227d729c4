"""The same images and captions written in every form that a source may have."""

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value

KINDS = ("folder", "folder-csv", "jsonl", "csv", "tsv", "parquet", "tar")
CAPTION_COLUMN = "captions"


class Original(dict):
    """One sample: `image_id`, `file` (a path) and `captions`."""


def originals(folder: Path, number: int) -> list[Original]:
    """The first samples of an image folder with captions."""
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()[:number]
    rows = [json.loads(line) for line in lines]
    return [
        Original(
            image_id=row["file_name"].rpartition(".")[0],
            file=folder / row["file_name"],
            captions=row.get("captions") or [row["text"]],
        )
        for row in rows
    ]


def write_source(
    kind: str, folder: Path, samples: Sequence[Original], num_shards: int = 1, group_size: int = 16
) -> str:
    """Writes samples as a source of a kind and returns its name: whole, or in shards of consecutive samples."""
    folder.mkdir(parents=True)
    if kind.startswith("folder"):
        for sample in samples:
            shutil.copy(sample["file"], folder)
        rows = [_row(sample, sample["file"].name, "file_name", kind == "folder-csv") for sample in samples]
        rows = [row for several in rows for row in several]
        write_rows("csv" if kind == "folder-csv" else "jsonl", folder / "metadata", rows)
        return str(folder)
    size = -(-len(samples) // num_shards)
    for shard in range(num_shards):
        write_shard(kind, folder / f"{shard:03}", samples[shard * size : (shard + 1) * size], group_size)
    return str(folder / f"{{000..{num_shards - 1:03}}}.{kind}") if num_shards > 1 else str(folder / f"000.{kind}")


def write_shard(kind: str, path: Path, samples: Sequence[Original], group_size: int = 16) -> Path:
    """Writes samples as one file, whose ending is added to the path; Parquet in row groups."""
    path = path.with_suffix(f".{kind}")
    if kind == "tar":
        write_tar(path, samples)
    elif kind == "parquet":
        features = Features(
            {"image_id": Value("string"), "image": Image(), "captions": List(Value("string")), "extra": Value("int64")}
        )
        rows = [
            {"image_id": sample["image_id"], "captions": sample["captions"], "extra": 1}
            | {"image": {"bytes": sample["file"].read_bytes(), "path": sample["file"].name}}
            for sample in samples
        ]
        Dataset.from_list(rows, features=features).to_parquet(path, batch_size=group_size)
    else:
        rows = [_row(sample, str(sample["file"]), "image", kind in {"csv", "tsv"}) for sample in samples]
        write_rows(kind, path.with_suffix(""), [row for several in rows for row in several])
    return path


def _row(sample: Original, path: str, column: str, is_flat: bool) -> list[dict[str, Any]]:
    """One row with all captions or, where a row holds only one, as many rows."""
    if not is_flat:
        return [{"image_id": sample["image_id"], column: path, "captions": sample["captions"]}]
    return [{"image_id": sample["image_id"], column: path, "caption": text} for text in sample["captions"]]


def write_rows(kind: str, path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes rows as JSON lines, CSV or TSV."""
    path = path.with_suffix(f".{kind}")
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def write_tar(path: Path, samples: Sequence[Original], **options: Any) -> None:
    """Writes samples as a shard of WebDataset."""
    with tarfile.open(path, "w", **options) as archive:
        for sample in samples:
            files = {
                sample["file"].suffix: sample["file"].read_bytes(),
                ".json": json.dumps({"captions": sample["captions"], "image_id": sample["image_id"]}).encode(),
            }
            for ending, data in files.items():
                member = tarfile.TarInfo(sample["image_id"] + ending)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
