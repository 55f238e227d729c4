"""Trains a CLIP tokenizer on captions and saves its folder.

python scripts/train_tokenizer.py --data captions.jsonl --vocab_size 16384 --output_dir outputs/tokenizer
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import datasets
from tqdm import tqdm
from transformers import HfArgumentParser

from clip_hf.data.columns import TEXT_COLUMNS, choose_column
from clip_hf.data.inputs import TABLES, read_column, read_lines, table_file
from clip_hf.data.rows import BrokenSampleError
from clip_hf.data.tables import open_table
from clip_hf.model.tokenization_clip_hf import ClipHfTokenizer

MEASURED_CAPTIONS = 10_000


@dataclass
class TokenizerArguments:
    """What to learn from, how large the vocabulary becomes, and where the tokenizer goes."""

    data: str = field(
        metadata={
            "help": "Captions: a .txt file with one per line, a .jsonl, .csv, .tsv or .parquet file, a folder with "
            "metadata, or a data set that datasets.load_dataset opens (a folder or a name on the Hub)."
        }
    )
    output_dir: str = field(metadata={"help": "Folder of the new tokenizer."})
    text_column: str | None = field(
        default=None,
        metadata={"help": "Column of strings or of lists of strings; by default a usual one, such as text."},
    )
    split: str = field(default="train", metadata={"help": "Split of a data set."})
    vocab_size: int = field(default=49_408, metadata={"help": "Entries of the vocabulary, at least 514."})
    context_length: int = field(default=77, metadata={"help": "Longest text in positions, with start and end."})


class Captions:
    """All captions of a column, read anew at every pass; rows without one, or damaged, are counted and left out."""

    def __init__(self, data: str, split: str, text_column: str | None) -> None:
        self.name, self.num_empty_rows, path = data, 0, Path(data)
        columns: Sequence[str] = ("text",)
        if (file := table_file(path)) is not None:
            table = open_table(str(file), str(file))
            columns = table.column_names
            self.values = lambda: read_column(table, self.column)
        elif not path.is_file():
            rows = datasets.load_dataset(data, split=split, streaming=True)
            columns = rows.column_names or list(next(iter(rows), {}))
            self.values = lambda: (row[self.column] for row in rows.select_columns([self.column]))  # no image decoded
        elif path.suffix.lower() == ".txt":
            self.values = lambda: read_lines(path)
        else:
            raise ValueError(f"{data} must end in one of .txt, {', '.join(TABLES)}")
        self.column = choose_column(data, columns, text_column, TEXT_COLUMNS, "text")

    def __iter__(self) -> Iterator[str]:
        self.num_empty_rows = 0
        for place, value in enumerate(self.values()):
            texts = value if isinstance(value, list) else [] if isinstance(value, BrokenSampleError) else [value]
            captions = [text for text in texts if text]
            if wrong := next((text for text in captions if not isinstance(text, str)), None):
                raise ValueError(f"{self.name}, row {place}: {wrong!r:.80} is no text")
            self.num_empty_rows += not captions
            yield from captions


def main(args: list[str] | None = None) -> None:
    """Trains, saves and reports."""
    (arguments,) = HfArgumentParser(TokenizerArguments).parse_args_into_dataclasses(args)
    Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)  # not found out after the training
    captions = Captions(arguments.data, arguments.split, arguments.text_column)
    with tqdm(captions, desc=f"Reading {captions.column}", unit=" captions") as progress:
        tokenizer = ClipHfTokenizer.train(progress, arguments.vocab_size, arguments.context_length, show_progress=True)
        num_captions, num_empty_rows = progress.n, captions.num_empty_rows
    tokenizer.save_pretrained(arguments.output_dir)

    measured = list(islice(captions, MEASURED_CAPTIONS))
    lengths = [len(ids) for ids in tokenizer(measured, truncation=False)["input_ids"]]
    too_long = sum(length > arguments.context_length for length in lengths) / len(lengths)
    print(f"captions    {num_captions:,} read, {num_empty_rows:,} rows without one, or damaged")
    print(f"vocabulary  {len(tokenizer):,} entries of {arguments.vocab_size:,} asked for")
    print(f"length      {sum(lengths) / len(lengths):.1f} tokens per caption on average, start and end included;")
    print(f"            {too_long:.1%} are longer than {arguments.context_length} (first {len(lengths):,} captions)")
    print(f"folder      {arguments.output_dir}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as mistake:
        sys.exit(f"train_tokenizer.py: {mistake}")
