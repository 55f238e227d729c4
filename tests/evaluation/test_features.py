"""Kept features: equal to the plain computation, computed once, and never those of something else."""

import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from clip_hf.data.columns import Columns
from clip_hf.data.sources import open_source
from clip_hf.evaluation import features
from clip_hf.evaluation.features import digest_image
from clip_hf.model import zero_shot_clip_hf
from tests.evaluation.tiny_evaluation import (
    MODELS,
    open_cache,
    open_photos,
    save_checkpoint,
    tokenizer_of,
    write_photos,
)
from tests.model.tiny_zero_shot import tiny_image_processor
from tests.ranks import run_on_ranks

TEXTS = ["a dog", "a very long haired tabby cat", "ox", "a dog", "zebra"]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(features, "IMAGES_PER_CHUNK", 5)
    monkeypatch.setattr(features, "TEXTS_PER_CHUNK", 3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint("clip_hf", tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


def unit(rows):
    return rows / rows.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("returns_tuples", [False, True])
@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_features_equal_the_plain_computation(kind, returns_tuples, photos, tmp_path):
    cache = open_cache(save_checkpoint(kind, tmp_path / "model"), tmp_path / "cache")
    cache.embedder.model.config.return_dict = not returns_tuples
    model, processor = MODELS[kind](), tiny_image_processor(MODELS[kind]())
    images = cache.embed_images(open_photos(photos))
    tower = cache.embed_images(open_photos(photos), before_projection=True)
    for row, id_ in enumerate(images.ids):
        pixels = processor(str(photos / id_), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(images.features[row], unit(model.get_image_features(pixels).pooler_output)[0])
        torch.testing.assert_close(tower.features[row], model.vision_model(pixels).pooler_output[0])
    padding = {"padding": "max_length", "max_length": 24} if kind == "siglip" else {}
    for text, embed in zip(TEXTS, cache.embed_texts(TEXTS), strict=True):
        input_ids = tokenizer_of(kind)(text, return_tensors="pt", **padding)["input_ids"]
        torch.testing.assert_close(embed, unit(model.get_text_features(input_ids).pooler_output)[0])


def test_texts_that_are_cut_are_told(checkpoint, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(zero_shot_clip_hf.logger, "warning", warnings.append)
    open_cache(checkpoint, tmp_path / "cache").embedder.embed_texts(["a dog", "dog " * 40])
    assert warnings == ["1 of 2 texts are longer than 24 tokens and were cut"]


def test_texts_share_what_they_begin_with(checkpoint, tmp_path):
    embedder, rows = open_cache(checkpoint, tmp_path / "cache").embedder, []
    layer = embedder.model.text_model.layers[0]
    layer.mlp.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[:2]))
    together = embedder.embed_texts(["a dog", "a cat", "a dog"])
    assert len(rows) == 1 and rows[0][0] == 1
    torch.testing.assert_close(together[0], embedder.embed_texts(["a dog"])[0])


def test_a_second_run_needs_no_model(checkpoint, photos, tmp_path, monkeypatch):
    first = open_cache(checkpoint, tmp_path / "cache")
    images, texts = first.embed_images(open_photos(photos)), first.embed_texts(TEXTS)
    second = open_cache(checkpoint, tmp_path / "cache", batch_size=3)
    monkeypatch.setattr(second.embedder, "embed_images", None)
    monkeypatch.setattr(second.embedder, "embed_texts", None)
    again = second.embed_images(open_photos(photos))
    assert torch.equal(again.features, images.features)
    assert again._replace(features=None) == images._replace(features=None)
    assert torch.equal(second.embed_texts(TEXTS), texts)


def test_a_changed_image_is_computed_again_and_its_chunk_alone(checkpoint, photos, tmp_path):
    cache = open_cache(checkpoint, tmp_path / "cache")
    before = cache.embed_images(open_photos(photos)).features
    files = set((tmp_path / "cache").iterdir())
    Image.new("RGB", (40, 40), "white").save(photos / "07.png")
    after = cache.embed_images(open_photos(photos)).features
    assert len(set((tmp_path / "cache").iterdir()) - files) == 1
    changed = [row for row in range(12) if not torch.equal(before[row], after[row])]
    assert 7 in changed and set(changed) <= set(range(5, 10))
    shutil.copy(photos / "00.png", photos / "07.png")
    assert torch.equal(cache.embed_images(open_photos(photos)).features[7], before[0])


@pytest.mark.parametrize("change", ["weights", "config", "image_processor", "tokenizer", "code"])
def test_a_changed_model_has_other_files(change, checkpoint, photos, tmp_path, monkeypatch):
    def names(changed):
        cache = open_cache(checkpoint, tmp_path / str(changed))
        if changed:
            embedder = cache.embedder
            if change == "weights":
                next(embedder.model.vision_model.parameters()).data.flatten()[0] += 1e-6
            elif change == "config":
                embedder.model.config.vision_config.layer_norm_eps = 1e-3
            elif change == "tokenizer":
                embedder.tokenizer.model_max_length = 20
            elif change == "code":
                monkeypatch.setattr(features, "_digest_code", lambda: "of other code")
            else:
                embedder.image_processor.resample = 0
            cache = features.FeatureCache(embedder, cache.folder)
        cache.embed_images(open_photos(photos))
        cache.embed_texts(TEXTS)
        return {file.name for file in cache.folder.iterdir()}

    assert not names(False) & names(True)


def test_equal_images_and_texts_have_equal_features(checkpoint, photos, tmp_path):
    shutil.copy(photos / "01.png", photos / "11.png")
    cache = open_cache(checkpoint, tmp_path / "cache")
    images, texts = cache.embed_images(open_photos(photos)).features, cache.embed_texts(TEXTS)
    assert torch.equal(images[1], images[11])
    assert torch.equal(texts[0], texts[3])


def test_unreadable_images_are_left_out_and_named(checkpoint, photos, tmp_path):
    (photos / "03.png").write_bytes((photos / "03.png").read_bytes()[:100])
    (photos / "05.png").unlink()
    cache = open_cache(checkpoint, tmp_path / "cache")
    for _ in range(2):  # computed, and from disk
        images = cache.embed_images(open_photos(photos))
        assert [entry["id"] for entry in images.broken] == ["03.png", "05.png"]
        assert images.places == [place for place in range(12) if place not in (3, 5)]
        assert len(images.features) == len(images.ids) == len(images.texts) == 10
    with_texts = images.with_texts()
    assert all(with_texts.texts) and len(with_texts.ids) == len(with_texts.features)
    assert with_texts.bare == ["04.png", "09.png"] and with_texts.broken == images.broken


def test_images_of_one_name_keep_their_features(checkpoint, photos, tmp_path):
    """The keys of a tar file are its own: two files may both have a 0003, of which one is broken."""
    plain = open_cache(checkpoint, tmp_path / "cache").embed_images(open_photos(photos))
    (photos / "09.png").write_bytes((photos / "09.png").read_bytes()[:100])
    for name, numbers in {"a": range(6), "b": range(6, 12)}.items():
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for key, number in enumerate(numbers):
                (tmp_path / "caption").write_text("noise")
                tar.add(photos / f"{number:02d}.png", f"{key:04d}.png")
                tar.add(tmp_path / "caption", f"{key:04d}.txt")
    source = open_source(str(tmp_path / "{a,b}.tar"), Columns())
    for _ in range(2):  # computed, and from disk
        images = open_cache(checkpoint, tmp_path / "of_tars").embed_images(source)
        assert images.places == [place for place in range(12) if place != 9]
        assert images.ids == [f"{place % 6:04d}" for place in images.places]
        torch.testing.assert_close(images.features, plain.features[images.places])
        assert [entry["id"] for entry in images.broken] == ["0003"]
        assert images.broken[0]["reason"].startswith("0003: ")


def test_nothing_readable_is_an_error(checkpoint, photos, tmp_path):
    for file in photos.glob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"not one of 12 images can be read; the first: .*00\.png"):
        open_cache(checkpoint, tmp_path / "cache").embed_images(open_photos(photos))


@pytest.mark.parametrize("mode", ["path", "bytes", "pillow"])
def test_digests_differ_where_contents_do(photos, mode):
    read = {"path": str, "bytes": lambda file: file.read_bytes(), "pillow": Image.open}[mode]
    digests = {digest_image(read(file)) for file in photos.glob("*.png")}
    assert len(digests) == 12
    assert digest_image(read(photos / "00.png")) in digests


def test_digests_see_palettes_and_orientation():
    grey = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).convert("P")
    other, turned = grey.copy(), grey.convert("RGB")
    other.putpalette([255 - value // 3 for value in range(768)])
    turned.getexif()[0x112] = 3
    assert digest_image(grey) == digest_image(grey.convert("RGB"))
    assert len({digest_image(image) for image in (grey, other, turned)}) == 3


def _features(checkpoint, photos, folder):
    features.IMAGES_PER_CHUNK, features.TEXTS_PER_CHUNK = 5, 3
    cache = open_cache(checkpoint, folder)
    images = cache.embed_images(open_photos(photos))
    return images.features, "|".join([*images.ids, *map(str, images.texts)]), cache.embed_texts(TEXTS)


def test_two_processes_share_the_work_and_have_all_of_it(checkpoint, photos, tmp_path):
    alone = _features(checkpoint, photos, tmp_path / "one")
    for of_rank in run_on_ranks(_features, 2, checkpoint, photos, tmp_path / "two"):
        assert torch.equal(of_rank[0], alone[0]) and of_rank[1] == alone[1] and torch.equal(of_rank[2], alone[2])
    assert {file.name for file in (tmp_path / "one").iterdir()} == {file.name for file in (tmp_path / "two").iterdir()}
