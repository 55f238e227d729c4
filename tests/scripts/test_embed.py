"""scripts/embed.py on real files: what it writes, what it refuses, what a second run completes."""

import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertModel, CLIPImageProcessor

from clip_hf import ClipHfImageProcessor, ClipHfModel, ClipHfTokenizer
from clip_hf.data import inputs
from tests.evaluation.tiny_evaluation import open_cache, open_photos, run_script, save_checkpoint, write_photos
from tests.model.tiny_zero_shot import (
    pictures,
    plain_text_embeds,
    tiny_image_processor,
    tiny_tokenizer,
    tiny_zero_shot_model,
)

CAPTIONS = ["a dog", "a very long haired tabby cat seen from afar", "an ox", "zebra", "a hot air balloon", "a cat"]


@pytest.fixture(scope="module", params=["vit", "resnet"])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = tiny_zero_shot_model(request.param)
    for part in (model, tiny_tokenizer(), tiny_image_processor(model)):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, picture in enumerate(pictures(7)):
        picture.save(folder / ("more" if number % 2 else ".") / f"{number}.png")
    return folder


def embed(checkpoint, data, output_dir, *options, launcher=(sys.executable,)):
    arguments = ["--model", checkpoint, "--data", data, "--output_dir", output_dir, "--num_workers", "0", *options]
    return subprocess.run([*launcher, "scripts/embed.py", *map(str, arguments)], capture_output=True, text=True)


def embed_here(checkpoint, data, output_dir, *options):
    """The same in this process, which has imported everything."""
    options = ["--num_workers", 0, *options]
    run_script("scripts/embed.py", "--model", checkpoint, "--data", data, "--output_dir", output_dir, *options)


def read(output_dir, modality):
    rows = [
        row for file in sorted(output_dir.glob(f"{modality}-*.parquet")) for row in pq.read_table(file).to_pylist()
    ]
    return {row["id"]: np.array(row["embedding"], dtype=np.float32) for row in rows}


def broken_of(output_dir):
    return [json.loads(line) for line in (output_dir / "broken.jsonl").read_text().split("\n")[:-1]]


def unit(features):
    return torch.nn.functional.normalize(features.pooler_output, dim=-1)[0].detach().numpy()


def test_pictures_of_a_folder_equal_the_plain_computation(checkpoint, photos, tmp_path):
    run = embed(checkpoint, photos, tmp_path / "out", "--batch_size", 3, "--shard_size", 4)
    assert run.returncode == 0, run.stderr
    found = read(tmp_path / "out", "image")
    assert sorted(found) == sorted(file.relative_to(photos).as_posix() for file in photos.rglob("*.png"))
    model, processor = ClipHfModel.from_pretrained(checkpoint), ClipHfImageProcessor.from_pretrained(checkpoint)
    for name, embedding in found.items():
        plain = model.get_image_features(processor(str(photos / name), return_tensors="pt")["pixel_values"])
        np.testing.assert_allclose(embedding, unit(plain), atol=1e-5)
    assert len(list((tmp_path / "out").glob("image-*.parquet"))) == 2
    assert "7 images" in run.stdout


def test_captions_of_a_file_equal_the_plain_computation(checkpoint, tmp_path):
    lines = [{"file_name": "a.jpg", "captions": CAPTIONS[:4]}, {"file_name": "b.jpg", "captions": CAPTIONS[4:]}]
    data = tmp_path / "captions.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = embed(checkpoint, data, tmp_path / "out", "--modality", "text", "--batch_size", 2)
    assert run.returncode == 0, run.stderr
    found = read(tmp_path / "out", "text")
    assert list(found) == ["a.jpg#0", "a.jpg#1", "a.jpg#2", "a.jpg#3", "b.jpg#0", "b.jpg#1"]
    model, tokenizer = ClipHfModel.from_pretrained(checkpoint), ClipHfTokenizer.from_pretrained(checkpoint)
    for text, embedding in zip(CAPTIONS, found.values(), strict=True):
        plain = model.get_text_features(tokenizer(text, return_tensors="pt")["input_ids"])
        np.testing.assert_allclose(embedding, unit(plain), atol=1e-5)


def test_images_and_texts_of_a_folder_are_embedded_in_one_run(checkpoint, tmp_path, capsys):
    photos = write_photos(tmp_path / "photos")
    (photos / "03.png").write_bytes(b"")
    lines = map(json.loads, (photos / "metadata.jsonl").read_text().splitlines())
    captions = {f"{line['file_name']}#{i}": text for line in lines for i, text in enumerate(line["captions"])}
    embed_here(checkpoint, photos, tmp_path / "out", "--modality", "both", "--batch_size", 5)
    report = capsys.readouterr()
    model, processor = ClipHfModel.from_pretrained(checkpoint), ClipHfImageProcessor.from_pretrained(checkpoint)
    found = read(tmp_path / "out", "image")
    assert list(found) == [f"{number:02d}.png" for number in range(12) if number != 3]
    for name, embedding in found.items():
        plain = model.get_image_features(processor(str(photos / name), return_tensors="pt")["pixel_values"])
        np.testing.assert_allclose(embedding, unit(plain), atol=1e-5)
    found = read(tmp_path / "out", "text")
    assert list(found) == list(captions)
    plain = plain_text_embeds(model, list(captions.values()))
    np.testing.assert_allclose(list(found.values()), plain, atol=1e-5)
    total = 12 + len(captions)
    assert f"12 images, {len(captions)} texts\n1 of them could not be read" in report.out
    assert f"Embedding:   0%|          | 0/{total} [" in report.err and f"| {total}/{total} [" in report.err


def test_a_split_of_a_data_set_of_the_hub_is_embedded(checkpoint, photos, tmp_path, monkeypatch):
    files = sorted(photos.rglob("*.png"))
    columns = {"id": [file.stem for file in files], "image": list(map(str, files)), "text": [*CAPTIONS, "a dog"]}
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).to_parquet(tmp_path / "rows.parquet")
    load, asked = inputs.load_dataset, []

    def load_dataset(name, split):
        asked.append((name, split))
        return load("parquet", data_files={split: str(tmp_path / "rows.parquet")}, split=split)

    monkeypatch.setattr(inputs, "load_dataset", load_dataset)
    embed_here(checkpoint, "me/pairs", tmp_path / "out", "--modality", "both", "--split", "validation")
    assert asked == [("me/pairs", "validation")] * 2
    embed_here(checkpoint, photos, tmp_path / "folder")
    expected, found = read(tmp_path / "folder", "image"), read(tmp_path / "out", "image")
    assert list(found) == columns["id"]
    for file in files:
        np.testing.assert_allclose(found[file.stem], expected[file.relative_to(photos).as_posix()], atol=1e-6)
    found = read(tmp_path / "out", "text")
    plain = plain_text_embeds(ClipHfModel.from_pretrained(checkpoint), columns["text"])
    assert list(found) == columns["id"]
    np.testing.assert_allclose(list(found.values()), plain, atol=1e-5)


def test_second_run_completes_the_first_and_touches_nothing_else(checkpoint, photos, tmp_path):
    embed(checkpoint, photos, tmp_path / "whole", "--shard_size", 2)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    (tmp_path / "part" / "image-00001.parquet").unlink()
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "part").glob("*.parquet")}
    run = embed(checkpoint, photos, tmp_path / "part", "--shard_size", 2)
    assert run.returncode == 0, run.stderr
    assert len(before) >= 2
    for file in (tmp_path / "whole").glob("*.parquet"):
        assert (tmp_path / "part" / file.name).read_bytes() == file.read_bytes()
    for name, time_written in before.items():
        assert (tmp_path / "part" / name).stat().st_mtime_ns == time_written


@pytest.mark.parametrize(("part", "modality"), [("image_processor", "image"), ("tokenizer", "text")])
def test_another_processor_is_another_run(part, modality, checkpoint, photos, tmp_path):
    changed, captions = tmp_path / "changed", tmp_path / "captions.txt"
    shutil.copytree(checkpoint, changed)
    captions.write_text("\n".join(CAPTIONS), encoding="utf-8")
    if part == "tokenizer":
        tokenizer = ClipHfTokenizer.from_pretrained(changed)
        tokenizer.model_max_length -= 1
        tokenizer.save_pretrained(changed)
    else:
        ClipHfImageProcessor.from_pretrained(changed, resample=Image.Resampling.BILINEAR).save_pretrained(changed)
    data = captions if modality == "text" else photos
    embed(checkpoint, data, tmp_path / "out", "--modality", modality)
    run = embed(changed, data, tmp_path / "out", "--modality", modality)
    assert run.returncode != 0 and f"{part}:" in run.stderr


def test_another_run_in_the_same_folder_is_refused(checkpoint, photos, tmp_path):
    embed(checkpoint, photos, tmp_path / "out")
    run = embed(checkpoint, photos, tmp_path / "out", "--shard_size", 3)
    assert run.returncode != 0
    assert "holds embeddings of another run (shard_size: 10000, now 3): choose another folder" in run.stderr


def test_broken_pictures_are_listed_and_the_run_completes(checkpoint, photos, tmp_path):
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "cut.png").write_bytes((photos / "0.png").read_bytes()[:200])
    run = embed(checkpoint, photos, tmp_path / "out", "--batch_size", 2)
    assert run.returncode == 0, run.stderr
    assert len(read(tmp_path / "out", "image")) == 7
    broken = broken_of(tmp_path / "out")
    assert {entry["id"] for entry in broken} == {"empty.jpg", "cut.png"}
    assert all(entry["id"] in entry["reason"] for entry in broken)
    assert "2 of them could not be read" in run.stdout


@pytest.mark.parametrize("name", ["bro\x85ken", "bro\u2028ken", os.fsdecode(b"bro\xe9ken")])
def test_any_name_of_a_file_can_be_listed_and_the_run_started_again(name, photos, tmp_path, capsys):
    checkpoint = save_checkpoint("clip_hf", tmp_path / "model")
    (photos / "0.png").rename(photos / f"whole-{name}.png")
    (photos / f"{name}.png").write_bytes(b"")
    for _ in range(2):
        embed_here(checkpoint, photos, tmp_path / "out", "--shard_size", 3)
        assert [entry["id"] for entry in broken_of(tmp_path / "out")] == [f"{name}.png"]
        assert f"whole-{name}.png".encode(errors="backslashreplace").decode() in read(tmp_path / "out", "image")
    assert "1 of them could not be read" in capsys.readouterr().out


def test_broken_rows_of_tables_are_listed_and_the_run_completes(checkpoint, photos, tmp_path):
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(http.server.SimpleHTTPRequestHandler, directory=photos)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    images = [f"{address}/0.png", f"{address}/gone.png", str(photos / "2.png"), None]
    texts = [["a dog", None, 7], ["a cat"], [], ["an ox"]]
    pq.write_table(pa.table({"id": list("abcd"), "url": images}), tmp_path / "images.parquet")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"captions": row[:2]}) + "\n" for row in texts))
    pq.write_table(pa.table({"text": [7, 8]}), tmp_path / "numbers.parquet")
    try:
        run = embed(checkpoint, tmp_path / "images.parquet", tmp_path / "images")
    finally:
        server.shutdown()
        server.server_close()
    assert run.returncode == 0, run.stderr
    assert list(read(tmp_path / "images", "image")) == ["a", "c"]
    assert [entry["id"] for entry in broken_of(tmp_path / "images")] == ["b", "d"]
    run = embed(checkpoint, tmp_path / "texts.jsonl", tmp_path / "texts", "--modality", "text")
    assert run.returncode == 0, run.stderr
    assert list(read(tmp_path / "texts", "text")) == ["0#0", "1#0", "3#0"]
    assert broken_of(tmp_path / "texts") == [{"id": "0#1", "reason": "0#1: None is no text"}]
    run = embed(checkpoint, tmp_path / "numbers.parquet", tmp_path / "numbers", "--modality", "text")
    assert run.returncode == 0 and "2 of them could not be read" in run.stdout, run.stderr


@pytest.mark.parametrize("modality", ["image", "text"])
def test_changed_contents_are_another_run(modality, checkpoint, photos, tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(CAPTIONS))
    data = captions if modality == "text" else photos
    assert embed(checkpoint, data, tmp_path / "out", "--modality", modality).returncode == 0
    assert embed(checkpoint, data, tmp_path / "out", "--modality", modality).returncode == 0
    captions.write_text("\n".join(reversed(CAPTIONS)))
    pictures(1)[0].save(photos / "0.png", compress_level=0)
    run = embed(checkpoint, data, tmp_path / "out", "--modality", modality)
    assert run.returncode != 0 and f"{modality}_inputs: " in run.stderr


def test_files_of_unknown_origin_are_not_taken_for_finished_work(photos, tmp_path):
    checkpoint = save_checkpoint("clip_hf", tmp_path / "model")
    (tmp_path / "out").mkdir()
    foreign = tmp_path / "out" / "image-00000.parquet"
    pq.write_table(pa.table({"id": ["a"]}), foreign)
    with pytest.raises(SystemExit, match=r"out holds image-00000\.parquet, but no embedding\.json that says what"):
        embed_here(checkpoint, photos, tmp_path / "out")
    foreign.rename(tmp_path / "out" / "other.parquet")
    embed_here(checkpoint, photos, tmp_path / "out")
    assert len(read(tmp_path / "out", "image")) == 7


def test_images_need_no_tokenizer_but_texts_do(photos, tmp_path):
    checkpoint = save_checkpoint("clip", tmp_path / "model")
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    embed_here(checkpoint, photos, tmp_path / "images")
    assert len(read(tmp_path / "images", "image")) == 7
    with pytest.raises(SystemExit, match="tokenizer has 2 tokens, but the text tower"):
        embed_here(checkpoint, tmp_path / "captions.txt", tmp_path / "texts", "--modality", "text")


def test_a_model_without_an_embedding_space_takes_one_line(photos, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(**sizes)).save_pretrained(tmp_path / "model")
    tiny_image_processor(tiny_zero_shot_model("vit")).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match="a BertModel, but must embed images and texts, as CLIP"):
        embed_here(tmp_path / "model", photos, tmp_path / "out")


def test_images_are_prepared_as_where_they_are_evaluated(tmp_path):
    """transformers' own image processor crops the photos of 44 by 40 pixels at another place."""
    checkpoint = save_checkpoint("clip", tmp_path / "model")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(checkpoint)
    photos = write_photos(tmp_path / "photos")
    embed_here(checkpoint, photos, tmp_path / "out")
    kept = open_cache(checkpoint, tmp_path / "cache").embed_images(open_photos(photos))
    found = read(tmp_path / "out", "image")
    assert len(found) == 12
    for id_, features in zip(kept.ids, kept.features.numpy(), strict=True):
        np.testing.assert_allclose(found[id_], features, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "gpu"], "embed.py: device is gpu, which cannot be used: "),
        (["--shard_size", 0], "embed.py: shard_size is 0, but must be at least 1"),
        (["--batch_size", 0], "embed.py: batch_size is 0, but must be at least 1"),
        (["--limit", -1], "embed.py: limit is -1, but must be at least 1"),
    ],
)
def test_mistakes_are_one_line(options, message, tmp_path):
    run = embed("no/model", tmp_path, tmp_path / "out", *options)
    assert run.returncode != 0 and run.stderr.strip().splitlines()[-1].startswith(message)
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (['{"a": "x"}'], [], "no column of texts (captions, caption, text, "),
        (['{"text": "x"}'], ["--text_column", "txt"], "no column 'txt'; there are text"),
        (['{"id": "1", "text": "x"}', '{"id": "1", "text": "y"}'], [], "the id '1' more than once"),
    ],
)
def test_unusable_data_is_an_error_before_the_model_is_opened(tmp_path, lines, options, message):
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(lines) + "\n")
    run = embed("no/model", data, tmp_path / "out", "--modality", "text", *options)
    assert run.returncode != 0
    assert message in run.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_share_the_work(checkpoint, photos, tmp_path):
    embed(checkpoint, photos, tmp_path / "one", "--shard_size", 2)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    run = embed(checkpoint, photos, tmp_path / "two", "--shard_size", 2, launcher=launcher)
    assert run.returncode == 0, run.stderr
    names = [sorted(file.name for file in (tmp_path / folder).glob("*.parquet")) for folder in ("one", "two")]
    assert names[0] == names[1] and len(names[0]) >= 2
    one, two = (read(tmp_path / folder, "image") for folder in ("one", "two"))
    assert list(one) == list(two)
    # Of a ResNet the last bits were seen to differ between processes.
    np.testing.assert_allclose(list(one.values()), list(two.values()), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_killed_run_is_completed_by_the_next(checkpoint, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(400):
        Image.new("RGB", (64, 64), (number % 256, 0, 0)).save(folder / f"{number:03d}.png")
    arguments = ["--model", checkpoint, "--data", folder, "--num_workers", "0", "--shard_size", "5", "--output_dir"]
    command = [sys.executable, "scripts/embed.py", *map(str, arguments)]
    process = subprocess.Popen([*command, str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
    while not list((tmp_path / "killed").glob("*.parquet")):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = len(list((tmp_path / "killed").glob("*.parquet")))
    for name in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / name)], check=True, capture_output=True)
    assert finished < len(list((tmp_path / "whole").glob("*.parquet"))) == 80
    for file in (tmp_path / "whole").glob("*.parquet"):
        assert (tmp_path / "killed" / file.name).read_bytes() == file.read_bytes()
