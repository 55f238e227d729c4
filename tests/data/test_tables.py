import csv
import json

import pandas
import pytest
from datasets import Dataset

from clip_hf.data.tables import BrokenSampleError, LinesTable, ParquetTable, RowsTable, TarTable, open_table
from tests.data.source_kinds import write_shard

NASTY = ["plain", 'with "quotes"', "commas, too", "two\nlines", "tab\there", "", "фото 海", "NA", "007", "ends in \\"]


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_csv_rows_are_those_that_pandas_reads(delimiter, tmp_path):
    rows = [{"image": f"{number}.jpg", "text": text, "id": str(number)} for number, text in enumerate(NASTY)]
    path = tmp_path / "a.csv"
    for encoding, ending in (("utf-8", "\n"), ("utf-8-sig", "\r\n")):
        with open(path, "w", newline="", encoding=encoding) as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator=ending)
            writer.writeheader()
            writer.writerows(rows)
        expected = pandas.read_csv(path, sep=delimiter, dtype=str, keep_default_na=False).to_dict("records")
        table = LinesTable(str(path), "a.csv")
        assert table.column_names == ["image", "text", "id"]
        assert [table.row(index) for index in range(len(table))] == expected == rows


def test_json_lines_may_be_blank_and_damaged(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf\n{"text": "a"}\n\n   \n{"text": "b"\n[1]\n{"text": "c\xff"}\r\n{"text": "\\u6d77", "id": 4}'
    )
    table = LinesTable(str(path), "a.jsonl")
    assert table.column_names == ["text"] and len(table) == 6
    assert table.row(1) == {"text": "a"} and table.row(5) == {"text": "海", "id": 4}
    for index, reason in ((0, "Expecting value"), (2, "delimiter"), (3, "no JSON object"), (4, "utf-8")):
        with pytest.raises(BrokenSampleError, match=rf"a\.jsonl, row {index}: .*{reason}"):
            table.row(index)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl has no JSON object in any line: it is empty"),
        ("a.jsonl", b"[1]\n[2]\n", "a.jsonl has no JSON object in any line: it is no JSON object but"),
        ("a.csv", b"\xff\xfea\x00,\x00b\x00", "a.csv is not CSV in UTF-8"),
        ("a.csv", b"a,b\n" + b'"x' * 100_000, "a.csv is not CSV in UTF-8: field larger"),
        ("a.parquet", b"PAR1 no PAR1", "a.parquet is not a whole Parquet file"),
    ],
)
def test_what_is_no_table_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_table(str(tmp_path / name), name)


def test_a_csv_row_of_another_length_is_broken(tmp_path):
    (tmp_path / "a.csv").write_text("image,text\n0.jpg,a\n1.jpg\n2.jpg,b,c\n3.jpg,d\n")
    table = LinesTable(str(tmp_path / "a.csv"), "a.csv")
    assert table.row(3) == {"image": "3.jpg", "text": "d"}
    for index, fields in ((1, 1), (2, 3)):
        with pytest.raises(BrokenSampleError, match=rf"row {index}: it has {fields} fields, the header 2"):
            table.row(index)


def test_parquet_rows_are_those_that_datasets_reads(drawn, tmp_path):
    file = write_shard("parquet", tmp_path / "a", drawn)
    table, rows = ParquetTable(str(file), "a"), RowsTable(Dataset.from_parquet(str(file)), "a")
    assert len(table) == len(rows) == 40 and table.column_names == rows.column_names
    for index in (0, 39, 15, 16, 17, 3):
        assert table.row(index) == rows.row(index)
        assert (
            table.row(index, ["captions"]) == rows.row(index, ["captions"]) == {"captions": drawn[index]["captions"]}
        )
    assert rows.row(0)["image"]["bytes"] == drawn[0]["file"].read_bytes()


def test_a_damaged_row_group_costs_its_rows_alone(drawn, tmp_path):
    file = write_shard("parquet", tmp_path / "a", drawn)
    data = bytearray(file.read_bytes())
    data[10:60] = b"\xaa" * 50
    file.write_bytes(data)
    table = ParquetTable(str(file), "a.parquet")
    with pytest.raises(BrokenSampleError, match=r"a\.parquet, row 3"):
        table.row(3)
    assert table.row(20)["image_id"] == "20"


def test_a_tar_row_has_usual_names(drawn, tmp_path):
    table = TarTable(str(write_shard("tar", tmp_path / "a", drawn)), "a.tar")
    row = table.row(7)
    assert row["image"] == row["jpg"] == drawn[7]["file"].read_bytes()
    assert (row["captions"], row["key"], row["image_id"]) == (drawn[7]["captions"], "07", "07")
    assert set(table.column_names) == {"image", "jpg", "captions", "key", "image_id"}
    assert "image" not in table.row(7, ["captions"])


def test_a_tar_that_is_cut_off_has_a_broken_row_at_its_end(drawn, tmp_path):
    file = write_shard("tar", tmp_path / "a", drawn)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    table = TarTable(str(file), "a.tar")
    assert 10 < len(table) < 30
    with pytest.raises(BrokenSampleError, match=r"a\.tar: .* (cut off|ends within)"):
        table.row(len(table) - 1)


def test_a_damaged_json_in_a_tar_is_a_broken_row(drawn, tmp_path):
    file = write_shard("tar", tmp_path / "a", drawn)
    damaged = json.dumps(drawn[7]["captions"]).encode()
    file.write_bytes(file.read_bytes().replace(damaged, b"\xff" * len(damaged)))
    table = TarTable(str(file), "a.tar")
    assert table.row(6)["key"] == "06"
    with pytest.raises(BrokenSampleError, match=r"a\.tar, 07\.json: "):
        table.row(7)
