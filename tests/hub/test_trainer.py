"""Trainings and models that push themselves to the Hub: what arrives, and that no token does."""

import pytest
from huggingface_hub import HfApi

from clip_hf import ClipHfModel, ClipHfProcessor, ClipTrainer, ClipTrainingArguments
from clip_hf.hub.failures import PushError
from clip_hf.model_card.page import GENERATED
from tests.hub.hub_card import check_card
from tests.hub.hub_server import Refusal
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


def test_facts_go_by_transformers_names_too(hub, this_process_uses_hub, checkpoint, tmp_path):
    trainer = make_trainer(checkpoint, tmp_path, hub_model_id="tester/facts", hub_token=hub.token)
    trainer.train()
    trainer.push_to_hub(
        dataset="me/pairs", finetuned_from="me/base", tags="shapes", model_name="Shapes", license="mit"
    )
    page = hub.repository("tester/facts").read("README.md").decode()
    metadata = check_card(page).metadata
    assert (metadata["datasets"], metadata["base_model"], metadata["license"]) == (["me/pairs"], "me/base", "mit")
    assert metadata["tags"][-1] == "shapes" and "# Shapes\n" in page
    assert (tmp_path / "training_args.bin").is_file()
    assert "training_args.bin" not in hub.repository("tester/facts").resolve("main").files
    for push in (trainer.push_to_hub, trainer.create_model_card):
        with pytest.raises(ValueError, match="licence: no such facts"):
            push(licence="mit")
    future = trainer.push_to_hub(blocking=False, license="apache-2.0")
    assert future.result() == f"{hub.url}/tester/facts"
    assert b"license: apache-2.0" in hub.repository("tester/facts").read("README.md")


def test_a_training_waits_for_the_hub_and_explains_what_it_refuses(hub, this_process_uses_hub, checkpoint, tmp_path):
    with hub.restrict_token("expired"), pytest.raises(PushError, match="has expired"):
        make_trainer(checkpoint, tmp_path, push_to_hub=True, hub_model_id="tester/refused", hub_token=hub.token)
    trainer = make_trainer(checkpoint, tmp_path, hub_model_id="tester/refused", hub_token=hub.token)
    trainer.train()
    with hub.fault(Refusal(status=500), path="/create", times=2) as created:
        with hub.fault(Refusal(429, retry_after_seconds=7), path="/commit/", times=1) as limited:
            trainer.push_to_hub()
    assert (created.hits, limited.hits) == (2, 1) and sum(this_process_uses_hub) >= 7
    with hub.restrict_token("expired"), pytest.raises(PushError, match="has expired") as error:
        trainer.push_to_hub(license="mit")
    assert f"push_to_hub.py {tmp_path} tester/refused --with_code" in str(error.value)
    assert_holds(hub, "tester/refused", tmp_path)


def test_a_push_that_fails_in_training_is_told_of(hub, this_process_uses_hub, checkpoint, tmp_path, caplog):
    options = {"push_to_hub": True, "hub_model_id": "tester/interrupted", "hub_token": hub.token}
    trainer = make_trainer(checkpoint, tmp_path, hub_strategy="every_save", hub_always_push=True, **options)
    with hub.fault(Refusal(status=403), path="/commit/", times=None), caplog.at_level("WARNING"):
        trainer.train()
        trainer._finish_current_push()
    assert trainer.state.global_step == 2
    told = [record.getMessage() for record in caplog.records if "tester/interrupted" in record.getMessage()]
    assert told and "step 2 did not get to tester/interrupted, and the training goes on: " in told[-1]
    assert hub.token not in caplog.text
    trainer.push_to_hub()
    assert_holds(hub, "tester/interrupted", tmp_path)


def test_other_processes_train_on_while_the_first_one_pushes(
    hub, this_process_uses_hub, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(ClipTrainer, "is_world_process_zero", lambda self: False)
    options = {"push_to_hub": True, "hub_model_id": "tester/first-alone", "hub_token": hub.token}
    trainer = make_trainer(checkpoint, tmp_path, hub_strategy="every_save", **options)
    trainer.train()
    assert trainer.state.global_step == 2 and ("model", "tester/first-alone") not in hub._api.repositories


def test_what_is_to_be_private_does_not_go_where_all_can_see_it(hub, this_process_uses_hub, checkpoint, tmp_path):
    HfApi().create_repo("tester/seen")
    options = {"hub_model_id": "tester/seen", "hub_token": hub.token}
    with pytest.raises(PushError, match="tester/seen exists and is public"):
        make_trainer(checkpoint, tmp_path, push_to_hub=True, hub_private_repo=True, **options)
    trainer = make_trainer(checkpoint, tmp_path, push_to_hub=True, **options)
    with pytest.raises(PushError, match="tester/seen exists and is public"):
        trainer.push_to_hub(private=True)
    trainer.args.hub_private_repo = True
    with pytest.raises(PushError, match="tester/seen exists and is public"):
        trainer.push_to_hub()
    assert len(hub.repository("tester/seen").history()) == 1
    trainer.push_to_hub(private=False)
    assert len(hub.repository("tester/seen").history()) == 2


def test_a_model_pushes_itself_with_its_page(hub, this_process_uses_hub, checkpoint, tmp_path):
    model = ClipHfModel.from_pretrained(checkpoint)
    with hub.fault(Refusal(status=503), path="/commit/", times=1) as fault:
        url = model.push_to_hub("tester/alone", private=True, license="mit", tags=["shapes"], token=hub.token)
    assert fault.hits == 1 and url == f"{hub.url}/tester/alone" and hub.repository("tester/alone").private
    page = hub.repository("tester/alone").read("README.md").decode()
    assert GENERATED in page and check_card(page).metadata["license"] == "mit"
    assert 'AutoModel.from_pretrained("tester/alone", trust_remote_code=True)' in page
    with hub.restrict_token("expired"), pytest.raises(PushError, match="hf auth login"):
        model.push_to_hub("tester/alone", license="mit")
    with pytest.raises(ValueError, match="such as me/alone"):
        model.push_to_hub("alone")
    with pytest.raises(ValueError, match="licence: no such facts"):
        model.push_to_hub("tester/alone", licence="mit")


def test_a_token_that_is_given_is_the_one_that_counts(hub, this_process_uses_hub, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent")
    model = ClipHfModel.from_pretrained(checkpoint)
    model.push_to_hub("tester/given", token=hub.token)
    assert_holds_model(hub, "tester/given", checkpoint)
    with hub.restrict_token("expired"), pytest.raises(PushError, match="has expired"):
        model.push_to_hub("tester/given", token=hub.token, license="mit")
    with pytest.raises(PushError, match="There is no token"):
        model.push_to_hub("tester/given", license="mit")
    options = {"push_to_hub": True, "hub_model_id": "tester/given", "hub_token": hub.token}
    with hub.restrict_token("expired"), pytest.raises(PushError, match="has expired"):
        make_trainer(checkpoint, tmp_path, **options)


def assert_holds_model(hub, repo_id, folder) -> None:
    for name in ("model.safetensors", "config.json", "modeling_clip_hf.py"):
        assert hub.repository(repo_id).read(name) == (folder / name).read_bytes(), name


def test_a_model_and_a_processor_push_themselves(hub, this_process_uses_hub, checkpoint):
    for part in (ClipHfModel.from_pretrained(checkpoint), ClipHfProcessor.from_pretrained(checkpoint)):
        part.push_to_hub("tester/parts", token=hub.token)
    assert_holds(hub, "tester/parts", checkpoint, with_results=False)
