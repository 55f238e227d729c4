import pytest
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config

from clip_hf.training import ClipTrainingArguments
from clip_hf.training.initial_weights import whole_on_every_process


@pytest.fixture(autouse=True)
def forget_deepspeed():
    yield
    unset_hf_deepspeed_config()


def test_models_made_inside_are_not_divided(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    config = {"zero_optimization": {"stage": 3}}
    args = ClipTrainingArguments(output_dir=str(tmp_path), use_cpu=True, deepspeed=config)
    assert is_deepspeed_zero3_enabled()
    with pytest.raises(KeyError), whole_on_every_process(args):
        assert not is_deepspeed_zero3_enabled()
        raise KeyError
    assert is_deepspeed_zero3_enabled()


def test_without_deepspeed_nothing_happens(tmp_path):
    with whole_on_every_process(ClipTrainingArguments(output_dir=str(tmp_path), use_cpu=True)):
        assert not is_deepspeed_zero3_enabled()
    assert not is_deepspeed_zero3_enabled()
