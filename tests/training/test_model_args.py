import pytest

from clip_hf import ClipHfTokenizer
from clip_hf.data.sources import open_source
from clip_hf.training import ClipTrainingArguments
from clip_hf.training.model_args import ModelArguments, build_tokenizer


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
