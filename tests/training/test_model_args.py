import pytest

from clip_hf import ClipHfTokenizer
from clip_hf.data.sources import open_source
from clip_hf.training import ClipTrainingArguments
from clip_hf.training.model_args import ModelArguments, build_tokenizer


def build(folder, vocab_size=560, **options) -> ClipHfTokenizer:
    args = ClipTrainingArguments(str(folder), use_cpu=True, **options)
    return build_tokenizer(ModelArguments(vocab_size=vocab_size), 16, [open_source("shapes")], args)


def test_a_resumed_run_has_the_tokenizer_of_its_beginning(tmp_path):
    assert len(build(tmp_path)) == 560
    for resume_from, size in (("true", 560), ("false", 540), (str(tmp_path), 540), (None, 530)):
        assert len(build(tmp_path, size if size < 560 else 520, resume_from_checkpoint=resume_from)) == size
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


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
    assert len(build(tmp_path, resume_from_checkpoint="true")) == (540 if is_there_one_already else 560)
