"""Trainings and models that push themselves to the Hub: what arrives, and that no token does."""

import pytest

from clip_hf import ClipHfModel, ClipHfProcessor, ClipTrainer, ClipTrainingArguments
from tests.tiny_pairs import TinyPairs, collate

COMMITS = {
    "end": [],
    "every_save": ["Training in progress, step 1", "Training in progress, step 2"],
    "checkpoint": [
        *("Training in progress, step 1", "Training in progress, step 1, checkpoint"),
        *("Training in progress, step 2", "Training in progress, step 2, checkpoint"),
    ],
}
COMMITS["all_checkpoints"] = COMMITS["checkpoint"]
CHECKPOINTS = {"checkpoint": {"last-checkpoint"}, "all_checkpoints": {"checkpoint-1", "checkpoint-2"}}


def make_trainer(checkpoint, folder, **options) -> ClipTrainer:
    model, processor = ClipHfModel.from_pretrained(checkpoint), ClipHfProcessor.from_pretrained(checkpoint)
    options |= {"max_steps": 2, "per_device_train_batch_size": 8, "save_steps": 1, "logging_steps": 1}
    args = ClipTrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, warmup_steps=0, **options)
    return ClipTrainer(model, args, collate, TinyPairs(model.config, 16), processing_class=processor)


def assert_holds(hub, repo_id, folder, with_results=True) -> None:
    """The repository holds the folder's model, processor, code and results, and no token."""
    repository = hub.repository(repo_id)
    names = {"model.safetensors", "config.json", "processor_config.json", "tokenizer.json", "modeling_clip_hf.py"}
    for name in names | ({"results.json", "curves.png"} if with_results else set()):
        assert repository.read(name) == (folder / name).read_bytes(), name
    assert not any(hub.token.encode() in content for content in hub.contents())


@pytest.mark.parametrize("strategy", COMMITS)
def test_a_training_pushes_as_its_strategy_says(strategy, hub, this_process_uses_hub, checkpoint, tmp_path):
    repo_id = f"tester/{strategy}"
    trainer = make_trainer(
        *(checkpoint, tmp_path),
        **{"push_to_hub": True, "hub_model_id": repo_id, "hub_strategy": strategy, "hub_always_push": True},
        hub_token=hub.token,
    )
    trainer.train()
    trainer.push_to_hub()
    titles = [commit.title for commit in hub.repository(repo_id).history()]
    assert titles[::-1] == ["initial commit", *COMMITS[strategy], "End of training"]
    folders = {name.partition("/")[0] for name in hub.repository(repo_id).resolve("main").files if "/" in name}
    assert folders == CHECKPOINTS.get(strategy, set())
    assert_holds(hub, repo_id, tmp_path)


def test_a_training_pushes_when_asked_at_its_end(hub, this_process_uses_hub, checkpoint, tmp_path):
    trainer = make_trainer(checkpoint, tmp_path, hub_model_id="tester/afterwards", hub_token=hub.token)
    trainer.train()
    trainer.push_to_hub(private=True)
    assert hub.repository("tester/afterwards").private
    assert_holds(hub, "tester/afterwards", tmp_path)
    page = hub.repository("tester/afterwards").read("README.md").decode()
    assert 'AutoModel.from_pretrained("tester/afterwards", trust_remote_code=True)' in page
    assert "| pairs seen | 16 |" in page and str(tmp_path) not in page


def test_a_model_and_a_processor_push_themselves(hub, this_process_uses_hub, checkpoint):
    for part in (ClipHfModel.from_pretrained(checkpoint), ClipHfProcessor.from_pretrained(checkpoint)):
        part.push_to_hub("tester/parts", token=hub.token)
    assert_holds(hub, "tester/parts", checkpoint, with_results=False)
