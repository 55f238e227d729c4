"""Images and texts to be embedded: what a line of a file is."""

import json
import pickle

import pytest

from clip_hf.data.inputs import load_inputs
from clip_hf.data.rows import BrokenSampleError

TEXT = "one line\u2028 with\x85 odd\x0c signs"


def test_a_line_ends_where_files_end_them_alone(tmp_path):
    (tmp_path / "texts.txt").write_text(f"{TEXT}\r\n\nanother\n", encoding="utf-8")
    assert [tuple(one) for one in load_inputs(tmp_path / "texts.txt", "text")] == [("0", TEXT), ("2", "another")]
    texts = {"1.jpg": TEXT, "2.jpg": "another"}
    rows = [json.dumps({"file_name": name, "text": text}, ensure_ascii=False) for name, text in texts.items()]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert [one.value for one in load_inputs(tmp_path, "text")] == [TEXT, "another"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.csv", "id,image,text\n007,a.jpg,123\n12345678901234567,b.jpg,None\n2020-01-01,c.jpg,True\n"),
        ("data.csv", "\ufeffid;image;text\n007;a.jpg;123\n12345678901234567;b.jpg;None\n2020-01-01;c.jpg;True\n"),
        ("data.tsv", "id\timage\ttext\n007\ta.jpg\t123\n12345678901234567\tb.jpg\tNone\n2020-01-01\tc.jpg\tTrue\n"),
        (
            "data.jsonl",
            '{"id": "007", "image": "a.jpg", "text": "123"}\n'
            '{"id": 12345678901234567, "image": "b.jpg", "text": "None"}\n'
            '{"id": "2020-01-01", "image": "c.jpg", "text": "True"}\n',
        ),
    ],
)
def test_what_looks_like_a_number_a_date_or_nothing_stays_what_it_is(name, content, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    ids = ["007", "12345678901234567", "2020-01-01"]
    assert load_inputs(tmp_path / name, "text") == list(zip(ids, ("123", "None", "True"), strict=True))
    images = pickle.loads(pickle.dumps(load_inputs(tmp_path / name, "image")))
    paths = [str(tmp_path / f"{letter}.jpg") for letter in "abc"]
    assert list(images) == list(zip(ids, paths, strict=True))
    assert list(images[1:]) == list(images)[1:]


def test_damaged_rows_and_rows_without_an_id_have_the_number_of_their_row(tmp_path):
    lines = ['{"id": "a", "text": "x"}', "{broken", '{"text": "y"}', '{"id": null, "text": 5}', '["z"]']
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    found = load_inputs(tmp_path / "data.jsonl", "text")
    assert [one.id for one in found] == ["a", "#1", "#2", "#3", "#4"]
    assert [found[place].value for place in (0, 2, 3)] == ["x", "y", 5]
    for place in (1, 4):
        assert isinstance(found[place].value, BrokenSampleError) and f"row {place}" in str(found[place].value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.csv", b"", "no column of texts"),
        ("data.jsonl", b"broken\n", "data.jsonl has no JSON object in any line"),
        ("data.txt", b"B\xe4r\n", "data.txt is not text in UTF-8"),
        ("data.parquet", b"no table", "data.parquet is not a whole Parquet file"),
        ("data.doc", b"x", "is neither a folder nor one of .txt, .jsonl, .csv, .tsv, .parquet"),
    ],
)
def test_a_damaged_file_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_inputs(tmp_path / name, "text")
