import csv
import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pandas
import pytest
from datasets import Dataset

from clip_hf.data import rows as rows_module
from clip_hf.data.rows import BrokenSampleError
from clip_hf.data.tables import ParquetTable, RowsTable, TarTable, open_table
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
        table = open_table(str(path), "a.csv")
        assert table.column_names == ["image", "text", "id"]
        assert [table.row(index) for index in range(len(table))] == expected == rows


def test_json_lines_may_be_blank_and_damaged(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf\n{"text": "a"}\n\n   \n{"text": "b"\n[1]\n{"text": "c\xff"}\r\n{"text": "\\u6d77", "id": 4}'
    )
    table = open_table(str(path), "a.jsonl")
    assert table.column_names == ["text", "id"] and len(table) == 6
    assert table.row(1) == {"text": "a"} and table.row(5) == {"text": "海", "id": 4}
    for index, reason in ((0, "Expecting value"), (2, "delimiter"), (3, "no JSON object"), (4, "utf-8")):
        with pytest.raises(BrokenSampleError, match=rf"a\.jsonl, row {index}: .*{reason}"):
            table.row(index)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl has no JSON object in any line: it is empty"),
        ("a.jsonl", b"[1]\n[2]\n", "a.jsonl has no JSON object in any line: a.jsonl, row 0: it is no JSON object but"),
        ("a.csv", b"\xff\xfea\x00,\x00b\x00", "a.csv is not CSV in UTF-8"),
        ("a.csv", b"a,b\r1,2\r", "a.csv is not CSV in UTF-8: its lines end in carriage returns alone"),
        ("a.tar", gzip.compress(bytes(2048), mtime=0), "a.tar is compressed by gzip: unpack it"),
        ("a.parquet", b"PAR1 no PAR1", "a.parquet is not a whole Parquet file"),
    ],
)
def test_what_is_no_table_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_table(str(tmp_path / name), name)


def test_a_csv_row_of_another_length_is_broken(tmp_path):
    (tmp_path / "a.csv").write_text("image,text\n0.jpg,a\n1.jpg\n2.jpg,b,c\n3.jpg,d\n")
    table = open_table(str(tmp_path / "a.csv"), "a.csv")
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


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return TarTable(str(path), "a.tar")


@pytest.mark.parametrize("quoted", ['"a 19 inch screen', '"a" cat', '"' + "x" * 200_000, '"a cat" '])
def test_a_quote_that_is_not_closed_costs_its_line_alone(quoted, tmp_path):
    rows = [["image", "text"], *([f"{number}.jpg", f"a cat\n{number}, on a mat"] for number in range(40))]
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows[:6])
        file.write(f"5.jpg,{quoted}\n")
        csv.writer(file).writerows(rows[7:])
    table = open_table(str(tmp_path / "a.csv"), "a.csv")
    assert len(table) == 40
    with pytest.raises(BrokenSampleError, match=r"a\.csv, row 5: .* in '5\.jpg,"):
        table.row(5)
    whole = [number for number in range(40) if number != 5]
    assert [table.row(number) for number in whole] == [
        dict(zip(rows[0], rows[number + 1], strict=True)) for number in whole
    ]


def test_a_csv_row_in_another_encoding_is_broken(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"image,text\n0.jpg,a\n" + "1.jpg,café\n".encode("latin-1") + b"2.jpg,b\n")
    table = open_table(str(tmp_path / "a.csv"), "a.csv")
    assert [table.row(number)["text"] for number in (0, 2)] == ["a", "b"]
    with pytest.raises(BrokenSampleError, match=r"a\.csv, row 1: 'utf-8'"):
        table.row(1)


def test_csv_may_have_spaces_behind_its_commas(tmp_path):
    (tmp_path / "a.csv").write_text('image, caption\n0.jpg, a cat\n1.jpg, "a cat, asleep"\n')
    table = open_table(str(tmp_path / "a.csv"), "a.csv")
    assert table.column_names == ["image", "caption"]
    assert [table.row(number)["caption"] for number in (0, 1)] == ["a cat", "a cat, asleep"]


def test_json_nested_too_deeply_is_a_broken_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + "[" * 100_000 + "\n")
    table = open_table(str(tmp_path / "a.jsonl"), "a.jsonl")
    with pytest.raises(BrokenSampleError, match=r"a\.jsonl, row 1: its JSON is nested too deeply"):
        table.row(1)
    table = write_tar(tmp_path / "a.tar", [("0.json", b"[" * 100_000), ("1.json", b'["a"]'), ("2.json", b"{}")])
    for number, message in enumerate(("nested too deeply", r"no JSON object but b'\[\"a\"\]'")):
        with pytest.raises(BrokenSampleError, match=rf"a\.tar, {number}\.json: .*{message}"):
            table.row(number)


def test_one_odd_row_does_not_decide_on_the_columns(tmp_path):
    odd = {"0.json": b"{", "1.jpg": b"", "1.json": b'{"caption": "a", "note": "b"}', "2.txt": b"\xff"}
    files = [*odd.items(), *((f"{number}{kind}", b"a") for number in range(3, 20) for kind in (".jpg", ".txt"))]
    assert set(write_tar(tmp_path / "a.tar", files).column_names) == {"key", "jpg", "image", "txt", "text"}
    (tmp_path / "a.jsonl").write_text('{"image": "0.jpg"}\n' + '{"image": "1.jpg", "caption": "a"}\n' * 3)
    assert open_table(str(tmp_path / "a.jsonl"), "a.jsonl").column_names == ["image", "caption"]


def test_of_several_images_in_a_row_of_a_tar_none_is_the_image(tmp_path):
    files = [(f"img.v{number}.{kind}", kind.encode()) for number in range(3) for kind in ("jpg", "txt")]
    table = write_tar(tmp_path / "a.tar", files)
    assert len(table) == 1 and "image" not in table.row(0)
    assert table.row(0, ["v1.jpg"])["v1.jpg"] == b"jpg"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system lists no open files in /proc")
def test_few_files_stay_open_and_the_others_open_again(tmp_path):
    tables = []
    for number in range(3 * rows_module.NUM_OPEN_FILES):
        (tmp_path / f"{number}.jsonl").write_text(f'{{"text": "{number}"}}\n')
        tables.append(open_table(str(tmp_path / f"{number}.jsonl"), f"{number}.jsonl"))
    assert [table.row(0)["text"] for table in tables] == [str(number) for number in range(len(tables))]
    links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists()]
    assert sum(link.startswith(str(tmp_path)) for link in links) <= rows_module.NUM_OPEN_FILES
