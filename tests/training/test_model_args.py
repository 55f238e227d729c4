import pytest
import torch
from transformers.utils import logging

from clip_hf import ClipHfConfig, ClipHfImageProcessor, ClipHfModel, ClipHfProcessor, ClipHfTokenizer
from clip_hf.data.sources import open_source
from clip_hf.training import ClipTrainer, ClipTrainingArguments
from clip_hf.training.model_args import ModelArguments, build_model, build_tokenizer
from tests.tiny_models import TEXT, VISION


def build(folder, vocab_size=560, is_dry_run=False, **options) -> ClipHfTokenizer:
    args = ClipTrainingArguments(str(folder), use_cpu=True, **options)
    return build_tokenizer(ModelArguments(vocab_size=vocab_size), 16, [open_source("shapes")], args, is_dry_run)


def write_checkpoint(folder, tokenizer):
    tokenizer.save_pretrained(folder)
    for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt"):
        (folder / name).touch()


def test_a_resumed_run_has_the_tokenizer_of_its_checkpoint(tmp_path):
    """Whatever has become of the one that its beginning left in the output folder."""
    write_checkpoint(tmp_path / "checkpoint-2", build(tmp_path))
    assert len(build(tmp_path, 540, resume_from_checkpoint="false")) == 540
    assert len(build(tmp_path, 520, resume_from_checkpoint="true")) == 560
    assert len(build(tmp_path / "other", 520, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))) == 560
    assert not (tmp_path / "other").exists()


def test_without_a_checkpoint_to_resume_a_tokenizer_is_learned(tmp_path):
    build(tmp_path, 540)
    assert len(build(tmp_path, resume_from_checkpoint="true")) == 560
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


def test_a_dry_run_learns_one_and_writes_nothing(tmp_path):
    unfinished = tmp_path / "_unfinished" / "checkpoint-2"
    unfinished.mkdir(parents=True)
    assert len(build(tmp_path, 540, is_dry_run=True)) == 540
    assert [path.name for path in tmp_path.iterdir()] == ["_unfinished"] and unfinished.exists()
    write_checkpoint(tmp_path / "checkpoint-1", build(tmp_path / "other"))
    assert len(build(tmp_path, 540, is_dry_run=True, resume_from_checkpoint="true")) == 560


CAPTIONS = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen liquor jugs"] * 2


@pytest.fixture
def checkpoint(tmp_path):
    """A small ViT with its processor."""
    tokenizer = ClipHfTokenizer.train(CAPTIONS, 540, 16)
    text_config = TEXT | {"vocab_size": 540, "max_position_embeddings": 16}
    model = ClipHfModel(ClipHfConfig(text_config=text_config, vision_config=VISION["vit"], projection_dim=32))
    model.save_pretrained(tmp_path / "model")
    ClipHfProcessor(ClipHfImageProcessor(size=32, crop_size=32), tokenizer).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("vocab_size", "context_length", "problem"),
    [
        (550, 16, "has 550 tokens, but model .* only 540"),
        (540, 20, "has 20 positions, but model .* only 16"),
        (530, 16, "ends texts with the id 529, but .* looks for 539"),
    ],
)
def test_a_tokenizer_that_the_model_cannot_read_is_refused(vocab_size, context_length, problem, checkpoint, tmp_path):
    ClipHfTokenizer.train(CAPTIONS, vocab_size, context_length).save_pretrained(tmp_path / "other")
    args = ModelArguments(model=str(checkpoint), tokenizer=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=problem):
        build_model(args, [], ClipTrainingArguments(str(tmp_path), use_cpu=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_in_half_precision_is_trained_in_float32(dtype, checkpoint, tmp_path):
    """As released ones are; Adam's averages would vanish."""
    ClipHfModel.from_pretrained(checkpoint, dtype=dtype).save_pretrained(checkpoint)
    args = ClipTrainingArguments(str(tmp_path / "out"), use_cpu=True)
    model, _ = build_model(ModelArguments(model=str(checkpoint)), [], args)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with pytest.raises(ValueError, match=f"the model is in {dtype}, in which Adam's averages"):
        ClipTrainer(ClipHfModel.from_pretrained(checkpoint), args)


def test_another_vocabulary_is_warned_of(checkpoint, tmp_path, caplog):
    logging.enable_propagation()
    other = ClipHfTokenizer.train([caption[::-1] for caption in CAPTIONS], 540, 16)
    for name, tokenizer in {"same": ClipHfTokenizer.from_pretrained(checkpoint), "other": other}.items():
        assert "another vocabulary" not in caplog.text
        tokenizer.save_pretrained(tmp_path / name)
        args = ModelArguments(model=str(checkpoint), tokenizer=str(tmp_path / name))
        build_model(args, [], ClipTrainingArguments(str(tmp_path), use_cpu=True))
    logging.disable_propagation()
    assert "another vocabulary" in caplog.text


class Killed(BaseException):
    pass


@pytest.mark.parametrize("is_there_one_already", [False, True])
def test_a_tokenizer_that_is_half_written_is_never_read(is_there_one_already, tmp_path, monkeypatch):
    if is_there_one_already:
        build(tmp_path, 540)

    def die_half_way(tokenizer, folder):
        folder.mkdir(parents=True)
        (folder / "tokenizer_config.json").write_text("{")
        raise Killed

    monkeypatch.setattr(ClipHfTokenizer, "save_pretrained", die_half_way)
    with pytest.raises(Killed):
        build(tmp_path)
    monkeypatch.undo()
    assert len(build(tmp_path, 550, resume_from_checkpoint="true")) == 550
