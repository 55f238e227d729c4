"""scripts/train_tokenizer.py: every kind of source, the report, the saved folder."""

import json

import datasets
import pandas
import pytest
from PIL import Image

from clip_hf.model.tokenization_clip_hf import ClipHfTokenizer
from scripts.train_tokenizer import main

CAPTIONS = ["the lowest of the low", "a newer river", "the widest river is lower", "a slow, new river"] * 3


def write_text(folder):
    (folder / "captions.txt").write_text("\n".join(CAPTIONS) + "\n\n", encoding="utf-8")
    return "captions.txt", []


def write_jsonl(folder):
    rows = [{"file_name": f"{i}.jpg", "text": text} for i, text in enumerate([*CAPTIONS, None])]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return "captions.jsonl", []


def write_lists(folder):
    rows = [{"captions": CAPTIONS[:5]}, {"captions": []}, {"captions": CAPTIONS[5:]}]
    (folder / "lists.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return "lists.jsonl", []


def write_csv(folder):
    pandas.DataFrame({"title": [*CAPTIONS, None], "label": range(13)}).to_csv(folder / "captions.csv", index=False)
    return "captions.csv", ["--text_column", "title"]


def write_parquet(folder):
    pandas.DataFrame({"caption": [*CAPTIONS, ""]}).to_parquet(folder / "captions.parquet")
    return "captions.parquet", []


def write_image_folder(folder):
    """The images are broken on purpose: a tokenizer has no reason to open them."""
    split = folder / "pictures" / "train"
    split.mkdir(parents=True)
    rows = [{"file_name": f"{i}.png", "text": text} for i, text in enumerate([*CAPTIONS, ""])]
    (split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    Image.new("RGB", (4, 4)).save(split / "0.png")
    for row in rows[1:]:
        (split / row["file_name"]).write_bytes(b"no image")
    return "pictures", []


@pytest.mark.parametrize("write", [write_text, write_jsonl, write_lists, write_csv, write_parquet, write_image_folder])
def test_every_source_gives_the_same_tokenizer(write, tmp_path, capsys):
    name, options = write(tmp_path)
    folder = tmp_path / "tokenizer"
    sizes = ["--vocab_size", "525", "--context_length", "8"]
    main(["--data", str(tmp_path / name), "--output_dir", str(folder), *sizes, *options])

    tokenizer = ClipHfTokenizer.from_pretrained(folder)
    expected = ClipHfTokenizer.train(CAPTIONS, 525)
    assert tokenizer.get_vocab() == expected.get_vocab()
    assert tokenizer.model_max_length == 8
    lengths = [len(ids) for ids in expected(CAPTIONS)["input_ids"]]
    report = " ".join(capsys.readouterr().out.split())
    assert "captions 12 read, 1 rows without one" in report
    assert "vocabulary 525 entries of 525 asked for" in report
    assert f"length {sum(lengths) / 12:.1f} tokens per caption on average" in report
    assert f"{sum(length > 8 for length in lengths) / 12:.1%} are longer than 8 (first 12 captions)" in report
    assert f"folder {folder}" in report


def test_a_split_of_a_data_set_of_the_hub(tmp_path, monkeypatch):
    file = tmp_path / write_parquet(tmp_path)[0]
    load, asked = datasets.load_dataset, []

    def load_dataset(name, split, streaming):
        asked.append((name, split))
        return load("parquet", data_files={split: str(file)}, split=split, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    options = ["--split", "validation", "--vocab_size", "525", "--output_dir", str(tmp_path / "tokenizer")]
    main(["--data", "me/captions", *options])
    assert asked == [("me/captions", "validation")]
    vocabulary = ClipHfTokenizer.from_pretrained(tmp_path / "tokenizer").get_vocab()
    assert vocabulary == ClipHfTokenizer.train(CAPTIONS, 525).get_vocab()


def test_progress_is_shown(tmp_path, capsys):
    name, options = write_csv(tmp_path)
    sizes = ["--vocab_size", "525", "--output_dir", str(tmp_path / "tokenizer")]
    main(["--data", str(tmp_path / name), *sizes, *options])
    shown = capsys.readouterr().err
    assert "Reading title: 0 captions [" in shown and "Reading title: 12 captions [" in shown


def test_a_column_that_is_not_there(tmp_path):
    (tmp_path / "data.csv").write_text("label,name\n1,a dog\n", encoding="utf-8")
    arguments = ["--data", str(tmp_path / "data.csv"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"data\.csv has no column of texts \(capt.*\); there are label, name: name"):
        main(arguments)
    with pytest.raises(ValueError, match=r"data\.csv has no column 'names'; there are label, name"):
        main([*arguments, "--text_column", "names"])


def test_what_is_no_text_is_named_and_what_looks_like_a_number_is_one(tmp_path, capsys):
    (tmp_path / "data.jsonl").write_text('{"text": "2020-01-01"}\nbroken\n{"text": null}\n{"text": 7}\n')
    (tmp_path / "data.csv").write_text("text;n\n123;1\n456;2\nTrue;3\n")
    (tmp_path / "latin.txt").write_bytes("Bär\n".encode("latin-1"))
    arguments = ["--output_dir", str(tmp_path / "out"), "--vocab_size", "514", "--data"]
    with pytest.raises(ValueError, match=r"data\.jsonl, row 3: 7 is no text"):
        main([*arguments, str(tmp_path / "data.jsonl")])
    with pytest.raises(ValueError, match=r"latin\.txt is not text in UTF-8"):
        main([*arguments, str(tmp_path / "latin.txt")])
    main([*arguments, str(tmp_path / "data.csv")])
    assert "captions    3 read, 0 rows without one" in capsys.readouterr().out
    (tmp_path / "out2").write_text("")
    with pytest.raises(FileExistsError, match="out2"):
        main(["--output_dir", str(tmp_path / "out2"), "--data", str(tmp_path / "data.csv")])


def test_a_file_of_unknown_kind(tmp_path):
    (tmp_path / "captions.doc").write_text("a dog", encoding="utf-8")
    with pytest.raises(ValueError, match=r"captions\.doc must end in one of \.txt, "):
        main(["--data", str(tmp_path / "captions.doc"), "--output_dir", str(tmp_path)])


def test_real_captions(test_data, tmp_path, capsys):
    data = test_data / "flickr8k" / "validation" / "metadata.jsonl"
    options = ["--text_column", "captions", "--vocab_size", "2000", "--output_dir", str(tmp_path)]
    main(["--data", str(data), *options])
    assert "5,000 read, 0 rows without one" in capsys.readouterr().out
    tokenizer = ClipHfTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 2_000
    assert tokenizer.tokenize("A dog runs") == ["a</w>", "dog</w>", "runs</w>"]
