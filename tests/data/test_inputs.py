"""Images and texts to be embedded: what a line of a file is."""

import json

from clip_hf.data.inputs import load_inputs

TEXT = "one line\u2028 with\x85 odd\x0c signs"


def test_a_line_ends_where_files_end_them_alone(tmp_path):
    (tmp_path / "texts.txt").write_text(f"{TEXT}\r\n\nanother\n", encoding="utf-8")
    assert [tuple(one) for one in load_inputs(tmp_path / "texts.txt", "text")] == [("0", TEXT), ("2", "another")]
    texts = {"1.jpg": TEXT, "2.jpg": "another"}
    rows = [json.dumps({"file_name": name, "text": text}, ensure_ascii=False) for name, text in texts.items()]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert [one.value for one in load_inputs(tmp_path, "text")] == [TEXT, "another"]
