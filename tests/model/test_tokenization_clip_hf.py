"""ClipHfTokenizer against OpenAI's ids and transformers' CLIPTokenizer; its folders, limits and training."""

import copy
import gzip
import inspect
import itertools
import json
import os
import pickle
import random
import string
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    DataCollatorWithPadding,
    pipeline,
)
from transformers.processing_utils import TextKwargs

from clip_hf.model import text_preparation_clip_hf, tokenization_clip_hf
from clip_hf.model.bpe_clip_hf import BYTE_VOCABULARY
from clip_hf.model.text_preparation_clip_hf import UNCLEAN, clean_text
from clip_hf.model.tokenization_clip_hf import ClipHfTokenizer

START, END = 49406, 49407
CORPUS = ["the lowest of the low", "a newer and wider river", "the widest river is lower", "a slow, new river"] * 3
NASTY = "Schön, “ﬁne” &amp; ΟΔΟΣ!! <|endoftext|> \x1b[1m日本 e\u0301"


@pytest.fixture(scope="module")
def bpe_file(test_data) -> Path:
    return test_data / "openai_bpe" / "bpe_simple_vocab_16e6.txt.gz"


@pytest.fixture(scope="module")
def golden(test_data) -> dict[str, list[int]]:
    """OpenAI's ids, without start and end, of 1,440 texts."""
    lines = (test_data / "openai_bpe" / "golden_ids.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["text"]: row["ids"] for row in map(json.loads, lines)}


@pytest.fixture(scope="module")
def openai(bpe_file) -> ClipHfTokenizer:
    return ClipHfTokenizer.from_openai_bpe(bpe_file)


@pytest.fixture(scope="module")
def vocab_and_merges(openai) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(openai.backend_tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@pytest.fixture(scope="module")
def peer(vocab_and_merges) -> CLIPTokenizer:
    """transformers' own tokenizer on the same vocabulary."""
    vocab, merges = vocab_and_merges
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


@pytest.fixture
def small() -> ClipHfTokenizer:
    return ClipHfTokenizer.train(CORPUS, vocab_size=535, context_length=8)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_ids(tokenizer, golden):
    """The tokenizer gives OpenAI's ids for every text, framed by the start and the end token."""
    encoded = tokenizer(list(golden), truncation=False)["input_ids"]
    different = {text: ids for text, ids in zip(golden, encoded, strict=True) if ids != [START, *golden[text], END]}
    assert not different, f"{len(different)} texts differ, the first is {next(iter(different))!a}"


# --- ids -------------------------------------------------------------------------------------------------------------


def test_openai_ids(openai, golden):
    assert len(golden) == 1_440
    assert_ids(openai, golden)
    assert (len(openai), openai.vocab_size) == (49_408, 49_408)
    assert (openai.bos_token_id, openai.eos_token_id, openai.pad_token_id) == (START, END, END)


def test_one_text_at_a_time_gives_the_ids_of_the_batch(openai, golden):
    for text, ids in list(golden.items())[::10]:
        assert openai.encode(text, truncation=False) == [START, *ids, END]
        assert openai.convert_tokens_to_ids(openai.tokenize(text)) == ids


def test_cleaning_every_text_changes_no_id(openai, golden, monkeypatch):
    generator = random.Random(0)
    texts = [text for text in golden if text.isascii()]
    texts += ["".join(chr(generator.randrange(128)) for _ in range(generator.randrange(20))) for _ in range(2_000)]
    fast = openai(texts, truncation=False)["input_ids"]
    monkeypatch.setattr(text_preparation_clip_hf, "UNCLEAN", text_preparation_clip_hf.re.compile(""))
    assert fast == openai(texts, truncation=False)["input_ids"]


def test_clip_tokenizer_agrees_where_nothing_needs_cleaning(openai, peer, golden):
    texts = [text for text in golden if not UNCLEAN.search(text)]
    assert len(texts) > 500
    assert openai(texts)["input_ids"] == peer(texts, truncation=True)["input_ids"]


def test_without_cleaning_the_ids_are_those_of_clip_tokenizer(openai, peer, bpe_file, golden):
    raw = ClipHfTokenizer.from_openai_bpe(bpe_file, clean=False)
    texts = [*golden, "<|ENDOFTEXT|> !<|endoftext|>", "it'\u017f", "!\u0345!"]
    assert raw(texts)["input_ids"] == peer(texts, truncation=True)["input_ids"]
    assert raw(texts)["input_ids"] != openai(texts)["input_ids"]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a<|ENDOFTEXT|>b", [320, END, 321]),  # in any case, between words
        ("!<|endoftext|>", [0, 27, 347, 40786, 4160, 91, 285]),  # but not in a run of punctuation
        ("<|endoftext|>!<|endoftext|>", [END, 0, 27, 347, 40786, 4160, 91, 285]),
        ("<|\u017ftartoftext|>", [27, 91, 129, 123, 2002, 6659, 18169, 91, 285]),  # one word, by the long s
        ("it'\u017f", [585, 6, 129, 379]),  # a contraction, by the long s
        ("\u0345!\u0345<|endoftext|>", [256, END]),  # no word, by the iota below
        ("J\u030culy", [329, 136, 490, 84, 597]),  # lower case has a composed form, upper case has none
        ("<e&#769;>", [283, 324, 136, 223, 285]),  # unescaped after the last normalization
        ("a\x0bb", [3937]),  # white space to Python, but removed by ftfy
    ],
)
def test_corners_of_openais_code(openai, text, ids):
    """Ids from openai/CLIP, clip/simple_tokenizer.py@d05afc4, where the golden texts do not go."""
    assert openai.encode(text) == [START, *ids, END]
    assert openai([text, "é"], add_special_tokens=False)["input_ids"][0] == ids


def test_special_strings_can_be_made_ordinary(openai):
    ids = openai("a <|endoftext|>", split_special_tokens=True)["input_ids"]
    assert (ids[0], ids[-1], ids.count(END)) == (START, END, 1)
    assert openai.decode(ids, skip_special_tokens=True) == "a <|endoftext|>"


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("option", [{}, *({"split_special_tokens": value} for value in (None, False, True))])
def test_a_call_says_how_special_strings_are_read_in_every_way(option, default, small, monkeypatch):
    monkeypatch.setattr(small, "split_special_tokens", default)
    plain = small("a <|endoftext|>", **option)["input_ids"]
    value = option.get("split_special_tokens")
    assert plain.count(small.eos_token_id) == 2 - (default if value is None else value)
    assert small(["a <|endoftext|>"], padding=True, return_tensors="pt", **option)["input_ids"].tolist() == [plain]


def test_decoding_gives_the_lower_cased_text(openai, golden):
    assert openai.decode(openai.encode("A photo of 2 CATS!")) == "<|startoftext|>a photo of 2 cats ! <|endoftext|>"
    assert openai.batch_decode(openai(["Schön", ""])["input_ids"], skip_special_tokens=True) == ["schön", ""]
    texts = [text for text in golden if "<|" not in text]
    decoded = openai.batch_decode(openai(texts, truncation=False)["input_ids"], skip_special_tokens=True)
    assert ["".join(text.split()) for text in decoded] == ["".join(clean_text(text).split()) for text in texts]


def test_words_given_apart(openai):
    words = openai([["A", "photo", "&amp;", "Schön"]], is_split_into_words=True)["input_ids"]
    assert words == openai(["a photo & schön"])["input_ids"]


def test_offsets_of_clean_text_refer_to_it(openai):
    offsets = openai("A Photo", return_offsets_mapping=True)["offset_mapping"]
    assert offsets == [(0, 0), (0, 1), (2, 7), (0, 0)]


# --- length and padding ----------------------------------------------------------------------------------------------


def test_long_texts_keep_their_end_token_everywhere(small):
    long = "the river " * 50
    calls = [
        small(long)["input_ids"],
        small.encode(long),
        small([long])["input_ids"][0],
        small([long, "a"], padding=True, return_tensors="pt")["input_ids"][0].tolist(),
        small([long, "a"], padding="max_length", return_tensors="np")["input_ids"][0].tolist(),
        small(text=[long], truncation=None, max_length=None)["input_ids"][0],
    ]
    for ids in calls:
        assert len(ids) == 8
        assert (ids[0], ids[-1]) == (small.bos_token_id, small.eos_token_id)
        assert ids == calls[0]
    assert len(small(long, max_length=5)["input_ids"]) == 5
    assert small(long, max_length=5)["input_ids"][-1] == small.eos_token_id
    for texts in (long, [long]):  # to the tokenizers library, 1 and 0 mean no limit at all
        for max_length in (2, 1, 0):
            with pytest.raises(ValueError, match=f"context length is {max_length}, but must be at least 3"):
                small(texts, max_length=max_length, padding=True, return_tensors="pt")
    assert len(small(long, max_length=1, add_special_tokens=False)["input_ids"]) == 1


def test_truncation_false_is_honoured(small):
    long = "the river " * 50
    for ids in (small(long, truncation=False)["input_ids"], small.encode(long, truncation=False)):
        assert len(ids) > 100


def test_padding_repeats_the_end_token_on_the_right(small):
    batch = small(["the river", "a"], padding=True, return_tensors="pt")
    length = batch["attention_mask"][1].sum()
    assert batch["input_ids"][1, length - 1 :].eq(small.eos_token_id).all()
    assert batch["attention_mask"].tolist() == [[1] * batch["input_ids"].shape[1], [1] * length + [0]]
    collated = DataCollatorWithPadding(small)([dict(small("the river")), dict(small("a"))])
    assert torch.equal(collated["input_ids"], batch["input_ids"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "max_length"},
        {"max_length": 9, "truncation": True},
        {"return_attention_mask": False},
        {"add_special_tokens": False},
        {"pad_to_multiple_of": 8},
        {"return_offsets_mapping": True, "return_length": True},
    ],
)
def test_tensors_are_those_that_transformers_makes(small, options):
    texts = ["the river", "a", "the river " * 50]
    ours = small(texts, **{"padding": True, "return_tensors": "pt", **options})
    theirs = small(texts, **{"padding": True, **options}).convert_to_tensors("pt")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor) and ours[name].dtype == tensor.dtype == torch.int64, name
    assert ours.char_to_token(0, 5) == theirs.char_to_token(0, 5) is not None
    assert small("a", return_tensors="pt")["input_ids"].shape == (1, 3)
    words = small(["the", "river"], is_split_into_words=True, return_tensors="pt")["input_ids"]
    assert words.tolist() == [small("the river")["input_ids"]]
    with pytest.raises(ValueError, match="padding=True"):
        small(texts, return_tensors="pt")


def test_texts_are_cut_to_the_largest_multiple_that_fits(openai, peer):
    short = ["a dog", "two dogs run over the grass"]
    options = {"padding": True, "return_tensors": "pt", "pad_to_multiple_of": 8}
    assert torch.equal(openai(short, **options)["input_ids"], peer(short, **options)["input_ids"])
    assert openai([*short, "the river " * 50], **options)["input_ids"].shape == (3, 72)
    with pytest.raises(ValueError, match="not a multiple"):
        openai(short, truncation=True, **options)


@pytest.mark.parametrize("options", [{}, {"padding": "max_length"}, {"max_length": 4, "truncation": True}])
def test_what_a_padded_batch_tells_of_its_tokens_is_what_clip_tokenizer_tells(openai, peer, options):
    texts = ["a dog", "two dogs run over the grass"]
    options = {"padding": True, "return_tensors": "pt", **options}
    ours, theirs = openai(texts, **options), peer(texts, **options)
    assert len(ours.encodings) == 2 and ours.n_sequences == theirs.n_sequences == 1
    for batch in (ours, pickle.loads(pickle.dumps(ours))):
        for row, ids in enumerate(batch["input_ids"].tolist()):
            assert batch[row].ids == ids
            for name in ("tokens", "word_ids", "sequence_ids"):
                assert getattr(batch, name)(row) == getattr(theirs, name)(row), name
            for name in ("ids", "attention_mask", "special_tokens_mask", "type_ids", "offsets"):
                assert getattr(batch[row], name) == getattr(theirs[row], name), name
    assert [encoding.ids for encoding in ours.encodings] == ours["input_ids"].tolist()
    assert [len(encoding) for encoding in ours.encodings[:1]] == [len(ours["input_ids"][0])]


def test_padding_on_the_left_is_refused(small, tmp_path):
    small.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="reads causally from the left"):
        ClipHfTokenizer.from_pretrained(tmp_path, padding_side="left")
    with pytest.raises(ValueError, match="reads causally from the left"):
        small(["a", "the river"], padding=True, padding_side="left")
    with pytest.raises(ValueError, match="reads causally from the left"):
        small.pad([dict(small("a")), dict(small("the river"))], padding_side="left")
    small.padding_side = "left"
    with pytest.raises(ValueError, match="reads causally from the left"):
        small("a")


def test_the_stock_pipeline_cuts_long_labels(small):
    text = {"vocab_size": len(small), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 16, "max_position_embeddings": 8, "eos_token_id": small.eos_token_id}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision | {"image_size": 32, "patch_size": 16}))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    classify = pipeline(
        "zero-shot-image-classification", model=model.eval(), tokenizer=small, image_processor=processor, device="cpu"
    )
    result = classify(Image.new("RGB", (32, 32)), candidate_labels=["the river " * 50, "a"], hypothesis_template="{}")
    assert sum(label["score"] for label in result) == pytest.approx(1)


# --- folders ---------------------------------------------------------------------------------------------------------


def clip_config() -> dict:
    return {"model_max_length": 77, "do_lower_case": True, "errors": "replace", "tokenizer_class": "CLIPTokenizer"}


def write_old_clip_folder(folder: Path, vocab, merges) -> None:
    """As transformers 4 wrote it: two vocabulary files, special tokens with settings of their own."""
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(clip_config()), encoding="utf-8")
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    tokens = {name: {"content": "<|endoftext|>", **special} for name in ("eos_token", "unk_token")}
    tokens |= {"bos_token": {"content": "<|startoftext|>", **special}, "pad_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens), encoding="utf-8")


def test_save_load_save_gives_the_same_files(openai, golden, tmp_path):
    openai.save_pretrained(tmp_path / "first")
    openai(["a", "b c"], padding=True, max_length=5)
    openai.save_pretrained(tmp_path / "used")
    loaded = ClipHfTokenizer.from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    assert files(tmp_path / "first") == files(tmp_path / "second") == files(tmp_path / "used")
    assert_ids(loaded, golden)


def test_settings_survive_saving(bpe_file, tmp_path):
    ClipHfTokenizer.from_openai_bpe(bpe_file, context_length=20, clean=False).save_pretrained(tmp_path)
    loaded = ClipHfTokenizer.from_pretrained(tmp_path)
    assert (loaded.model_max_length, loaded.clean) == (20, False)
    assert ClipHfTokenizer.from_pretrained(tmp_path, clean=True, model_max_length=9).model_max_length == 9


def test_old_clip_folders(vocab_and_merges, golden, tmp_path):
    write_old_clip_folder(tmp_path / "clip", *vocab_and_merges)
    assert_ids(ClipHfTokenizer.from_pretrained(tmp_path / "clip"), golden)


def test_new_clip_folders(peer, golden, tmp_path):
    peer(["a", "b c"], padding=True, truncation=True, max_length=5)  # leaves its mark in tokenizer.json
    peer.save_pretrained(tmp_path)
    loaded = ClipHfTokenizer.from_pretrained(tmp_path)
    assert_ids(loaded, golden)
    assert len(loaded("a " * 100)["input_ids"]) == 77


def test_folders_of_all_origins_become_the_same(openai, peer, vocab_and_merges, tmp_path):
    """Whatever else transformers' files say, about frames, padding, truncation or special tokens, is gone."""
    origins = {"openai": openai}
    write_old_clip_folder(tmp_path / "old", *vocab_and_merges)
    origins["old"] = ClipHfTokenizer.from_pretrained(tmp_path / "old")
    peer(["a", "b c"], padding=True, truncation=True, max_length=5)
    peer.save_pretrained(tmp_path / "new")
    origins["new"] = ClipHfTokenizer.from_pretrained(tmp_path / "new")
    for origin, tokenizer in origins.items():
        tokenizer.save_pretrained(tmp_path / origin / "saved")
    saved = {origin: files(tmp_path / origin / "saved") for origin in origins}
    assert saved["openai"] == saved["new"]
    assert saved["openai"]["tokenizer.json"] == saved["old"]["tokenizer.json"]


@pytest.mark.parametrize("layout", ["tokenizer.json", "vocab.json"])
def test_open_clip_folders(peer, vocab_and_merges, golden, tmp_path, layout):
    folder = tmp_path / "open_clip"
    if layout == "tokenizer.json":
        peer.save_pretrained(folder)
    else:
        write_old_clip_folder(folder, *vocab_and_merges)
    towers = {"vision_cfg": {"layers": 12, "width": 768, "patch_size": 32}, "text_cfg": {"context_length": 32}}
    config = {"model_cfg": {"embed_dim": 512, **towers}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = ClipHfTokenizer.from_pretrained(folder)
    assert_ids(loaded, golden)
    assert loaded.model_max_length == 32
    assert ClipHfTokenizer.from_pretrained(folder, model_max_length=16).model_max_length == 16
    del config["model_cfg"]["text_cfg"]["context_length"]
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert ClipHfTokenizer.from_pretrained(folder).model_max_length == 77


def test_an_unknown_context_length_becomes_77(peer, tmp_path):
    peer.save_pretrained(tmp_path)
    for length in (int(1e30), None):
        config = clip_config() | {"model_max_length": length}
        config = {name: value for name, value in config.items() if value is not None}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        assert ClipHfTokenizer.from_pretrained(tmp_path).model_max_length == 77


def test_a_foreign_pad_token_is_replaced_with_a_warning(peer, tmp_path, monkeypatch):
    peer.save_pretrained(tmp_path)
    config = clip_config() | {"pad_token": "!"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    warnings = []
    monkeypatch.setattr(tokenization_clip_hf.logger, "warning", warnings.append)
    loaded = ClipHfTokenizer.from_pretrained(tmp_path)
    assert warnings == ["The pad token becomes <|endoftext|> instead of !; the model reads neither"]
    assert loaded.pad_token_id == END
    assert loaded("wow!!")["input_ids"] == peer("wow!!")["input_ids"]


def test_clip_tokenizer_opens_our_folders(openai, golden, tmp_path):
    openai.save_pretrained(tmp_path)
    texts = [text for text in golden if not UNCLEAN.search(text)]
    assert CLIPTokenizer.from_pretrained(tmp_path)(texts)["input_ids"] == openai(texts, truncation=False)["input_ids"]


@pytest.mark.parametrize("arguments", [{}, {"trust_remote_code": True}])
def test_both_ways_to_construct_give_the_same(openai, tmp_path, arguments):
    """Vocabulary and merges, or the file as a whole, which is how transformers calls code from the Hub."""
    openai.save_pretrained(tmp_path)
    settings = ClipHfTokenizer.convert_to_native_format(tokenizer_file=str(tmp_path / "tokenizer.json"), **arguments)
    assert ClipHfTokenizer(**settings)(NASTY) == openai(NASTY)


def test_clean_process_loads_our_code_or_refuses(openai, tmp_path):
    """Without clip_hf, transformers must run the folder's code, or fail: its own class would not clean."""
    openai.save_pretrained(tmp_path / "folder")
    program = """
import json, sys
from transformers import AutoTokenizer
folder, again, text = sys.argv[1:]
assert "clip_hf" not in sys.modules
try:
    AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error)
else:
    raise AssertionError("a tokenizer without cleaning was loaded")
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
tokenizer.save_pretrained(again)
print(json.dumps(tokenizer(json.loads(text))["input_ids"]))
"""
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    arguments = [str(tmp_path / "folder"), str(tmp_path / "again"), json.dumps(NASTY)]
    output = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(output) == openai(NASTY)["input_ids"]
    assert files(tmp_path / "folder") == files(tmp_path / "again")


def test_pickle_and_deepcopy(openai):
    for twin in (pickle.loads(pickle.dumps(openai)), copy.deepcopy(openai)):
        assert twin(NASTY) == openai(NASTY)
        assert twin.decode(twin(NASTY)["input_ids"]) == openai.decode(openai(NASTY)["input_ids"])


def test_added_tokens_match_in_any_case_and_survive_saving(small, tmp_path):
    size = len(small)
    small.add_tokens("<Toy>")
    small.add_special_tokens({"extra_special_tokens": ["[IMG]"]})
    small.save_pretrained(tmp_path)
    for tokenizer in (small, ClipHfTokenizer.from_pretrained(tmp_path)):
        assert tokenizer.encode("<Toy> [IMG]", add_special_tokens=False) == [size, size + 1]
        assert tokenizer.encode("<toy>é [img]", add_special_tokens=False)[::3] == [size, size + 1]
        assert tokenizer.eos_token_id == size - 1


# --- refusals --------------------------------------------------------------------------------------------------------


def gzipped(lines: list[str]) -> bytes:
    return gzip.compress("\n".join(lines).encode())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04 not gzip", "Not a gzipped file"),
        (gzipped(["#version: 0.2", "a b", "c d"]), "it gives 2 merges"),
        (gzipped(["one two three"]), "line 1 is 'one two three'"),
        (gzipped(["hello world"]), "merge 1 joins 'hello' and 'world'"),
        (gzip.compress(b"\xff\xfe\x00"), "codec can't decode"),
        (gzipped(["a b"] * 1000)[:-9], "ended before|error"),
        (b"", "line 1 is ''"),
    ],
    ids=["no gzip", "too few", "three words", "no bytes", "no text", "cut off", "empty"],
)
def test_a_file_that_is_not_openais_is_named(tmp_path, content, reason):
    file = tmp_path / "other.txt.gz"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"other\.txt\.gz is not OpenAI's .* 48894 lines of two tokens .*({reason})"):
        ClipHfTokenizer.from_openai_bpe(file)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        ClipHfTokenizer.from_openai_bpe(tmp_path / "none.gz")


def test_a_folder_without_a_vocabulary_is_refused(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds tokenizer.json, or vocab.json and merges.txt"):
        ClipHfTokenizer.from_pretrained(tmp_path)


def test_another_models_vocabulary_is_refused():
    with pytest.raises(ValueError, match="is not CLIP's"):
        ClipHfTokenizer({"[CLS]": 0, "hello": 1}, [])


@pytest.mark.parametrize("name", ["bos_token", "eos_token", "pad_token", "unk_token"])
def test_another_special_token_is_refused(name):
    vocab = {token: index for index, token in enumerate([*BYTE_VOCABULARY, "<|startoftext|>", "<|endoftext|>"])}
    assert len(ClipHfTokenizer(vocab, [])) == 514
    with pytest.raises(ValueError, match=rf"{name} is \[X\], but CLIP's is <\|"):
        ClipHfTokenizer(vocab, [], **{name: "[X]"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clean": "no"}, "clean is 'no', but must be True or False"),
        ({"clean": None}, "clean is None, but must be True or False"),
        ({"claen": False}, "claen is no option of the tokenizer; did you mean clean?"),
    ],
)
def test_a_mistaken_choice_of_cleaning_is_refused(small, tmp_path, options, message):
    small.save_pretrained(tmp_path)
    model = json.loads(small.backend_tokenizer.to_str())["model"]
    with pytest.raises(ValueError, match=message):
        ClipHfTokenizer(model["vocab"], [tuple(merge) for merge in model["merges"]], **options)
    with pytest.raises(ValueError, match=message):
        ClipHfTokenizer.from_pretrained(tmp_path, **options)


@pytest.mark.parametrize("texts", ["a", ["a", "b"]])
def test_an_option_that_does_not_exist_is_refused(small, texts):
    message = "max_lenght is no option of the tokenizer; did you mean max_length"
    mistakes = {"max_lenght": 5}, {"tokenizer_kwargs": {"max_lenght": 5}}, {"max_lenght": 5, "padding": True}
    for options in mistakes:
        with pytest.raises(TypeError, match=message):
            small(texts, return_tensors="pt", **options)
    for method in (small.encode, small.tokenize):
        with pytest.raises(TypeError, match=message):
            method(texts, max_lenght=5)


def test_every_option_of_transformers_is_taken(small):
    parameters = list(inspect.signature(small.__call__).parameters.values())
    options = {one.name: one.default for one in parameters if one.default is not one.empty}
    options |= dict.fromkeys(TextKwargs.__annotations__.keys() - options.keys())
    options |= {"max_target_length": 5, "split_special_tokens": False, "text": "a", "text_target": "a b"}
    assert small(**options)["labels"] == small("a b", max_length=5)["input_ids"]
    assert small.encode("a", truncation=True, verbose=False, return_length=True) == small("a")["input_ids"]
    assert small.tokenize("a", truncation=True, max_length=5, padding=False) == ["a</w>"]


@pytest.mark.parametrize("text", [None, 5, b"bytes", ["a", None], [["a"], [5]]])
def test_what_is_no_text_is_refused(small, text):
    with pytest.raises(ValueError, match=r"A text must be a string|specify either"):
        small(text)


def test_pairs_and_empty_batches_are_refused(small):
    with pytest.raises(ValueError, match="there is no text_pair"):
        small("a", "b")
    with pytest.raises(ValueError, match="the list is empty"):
        small([])


@pytest.mark.parametrize("options", [{}, {"padding": True, "return_tensors": "pt"}])
@pytest.mark.parametrize(
    ("texts", "number"),
    [
        ([["the river", "a slow river"], ["wider", "low"]], 0),
        ([("the river", "a slow river")], 0),
        (["the river", ["wider", "low"]], 1),
        ([["the river", "wider", "low"]], 0),
        ([[]], 0),
    ],
)
def test_several_captions_in_one_item_are_refused(small, texts, number, options):
    kind = type(texts[number]).__name__
    with pytest.raises(
        ValueError, match=rf"string, but number {number} is a {kind}.*pass the captions as one flat list"
    ):
        small(texts, **options)


# --- training --------------------------------------------------------------------------------------------------------


def test_trained_layout(small):
    tokens = sorted(small.get_vocab(), key=small.get_vocab().get)
    assert len(small) == len(tokens) == 535
    assert tokens[:512] == BYTE_VOCABULARY
    assert tokens[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    assert (small.bos_token_id, small.eos_token_id, small.pad_token_id) == (533, 534, 534)
    assert small.model_max_length == 8
    assert {"the</w>", "river</w>"} <= set(tokens)
    assert small.tokenize("The RIVER") == ["the</w>", "river</w>"]


def test_every_text_has_ids_after_training_on_little(small):
    """A byte that never ended a word in the corpus must not become the unknown, which is the end token."""
    generator = random.Random(0)
    texts = [*pre_tokenizers.ByteLevel.alphabet(), "日本", "🎉", "naïve Ünïcödé", "x-ray_#1"]
    texts += [chr(generator.choice([generator.randrange(0xD800), generator.randrange(0xE000, 0x110000)])) * 2] * 500
    for ids in small(texts, add_special_tokens=False, truncation=False)["input_ids"]:
        assert small.eos_token_id not in ids
    assert small.decode(small.encode("日本 🎉 x", truncation=False), skip_special_tokens=True) == "日本 🎉 x"


def test_training_learns_the_textbook_merges():
    """The example of Sennrich et al. (arXiv 1508.07909, section 3.2): low, lower, newest, widest."""
    corpus = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3
    tokenizer = ClipHfTokenizer.train(corpus, vocab_size=514 + 3)
    assert [tokenizer.convert_ids_to_tokens(index) for index in (512, 513)] == ["es", "est</w>"]
    assert tokenizer.convert_ids_to_tokens(514) in {"lo", "ow"}
    assert tokenizer.tokenize("newest") == ["n", "e", "w", "est</w>"]


def test_a_smaller_vocabulary_is_the_beginning_of_a_larger():
    small, large = (ClipHfTokenizer.train(CORPUS, size).get_vocab() for size in (525, 535))
    assert sorted(small, key=small.get)[:523] == sorted(large, key=large.get)[:523]


def test_training_is_reproducible_and_saved(small, tmp_path):
    small.save_pretrained(tmp_path / "first")
    ClipHfTokenizer.train(iter(CORPUS), vocab_size=535, context_length=8).save_pretrained(tmp_path / "second")
    assert files(tmp_path / "first") == files(tmp_path / "second")
    assert ClipHfTokenizer.from_pretrained(tmp_path / "first")(NASTY) == small(NASTY)


def test_pairs_of_one_frequency_join_in_the_same_order_each_time():
    words = ["".join(pair) for pair in itertools.product(string.ascii_lowercase, repeat=2)] * 2
    first, *others = (ClipHfTokenizer.train(words, vocab_size=514 + 100).get_vocab() for _ in range(4))
    assert all(vocab == first for vocab in others)


def test_training_cleans_its_texts(bpe_file):
    texts = ["CAF&Eacute; “ouvert”"] * 5
    assert ClipHfTokenizer.train(texts, 535).tokenize("café") == ["cafÃ©</w>"]
    assert "caf</w>" in ClipHfTokenizer.train(texts, 535, clean=False).get_vocab()


def test_batches_of_texts_train_the_same(small):
    batches = [CORPUS[:5], CORPUS[5:]]
    assert ClipHfTokenizer.train(batches, 535).get_vocab() == small.get_vocab()
    retrained = small.train_new_from_iterator(iter(batches), 535)
    assert retrained.get_vocab() == small.get_vocab()
    assert retrained.model_max_length == 8
    with pytest.raises(ValueError, match="trained without new_special_tokens"):
        small.train_new_from_iterator(batches, 535, new_special_tokens=["[X]"])


def test_the_smallest_vocabulary():
    tokenizer = ClipHfTokenizer.train(CORPUS, vocab_size=514, context_length=3)
    assert len(tokenizer) == 514
    assert tokenizer("river")["input_ids"] == [512, BYTE_VOCABULARY.index("r"), 513]


def test_a_corpus_too_small_for_the_vocabulary_warns(monkeypatch):
    warnings = []
    monkeypatch.setattr(tokenization_clip_hf.logger, "warning", warnings.append)
    tokenizer = ClipHfTokenizer.train(["ab ab"], vocab_size=1_000)
    assert len(tokenizer) == 515
    assert tokenizer.eos_token_id == 514
    assert warnings == ["The texts give a vocabulary of 515 entries; 1000 were asked for"]


def test_a_large_enough_corpus_fills_the_vocabulary():
    words = [left + right for left in string.ascii_lowercase for right in string.ascii_lowercase]
    assert len(ClipHfTokenizer.train(words * 2, vocab_size=1_150)) == 1_150


@pytest.mark.parametrize(
    ("texts", "sizes", "reason"),
    [
        (CORPUS, {"vocab_size": 513}, "vocab_size is 513, .* are 514"),
        (CORPUS, {"context_length": 2}, "context length is 2, but must be at least 3"),
        ([], {}, "There are no texts"),
        ("a single string", {}, "texts is one string"),
        (["a", None], {}, "A text must be a string"),
        (["a", 5], {"clean": False}, "A text must be a string"),
    ],
)
def test_what_cannot_be_trained_is_refused(texts, sizes, reason):
    with pytest.raises(ValueError, match=reason):
        ClipHfTokenizer.train(texts, **sizes)


def test_texts_are_streamed():
    class Text(str):
        """A string that can be watched."""

    def corpus():
        for number in range(5_000):
            text = Text(f"text {number}")
            alive.add(text)
            most_alive.append(len(alive))
            yield text
            del text

    alive: weakref.WeakSet = weakref.WeakSet()
    most_alive: list[int] = []
    ClipHfTokenizer.train(corpus(), 520)
    assert len(most_alive) == 5_000
    assert max(most_alive) < 2_500
