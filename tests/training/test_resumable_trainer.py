import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from transformers import TrainerCallback
from transformers.utils import logging

from clip_hf.training.interruption import EXIT_CODE
from tests.tiny_models import tiny_model
from tests.tiny_pairs import TinyPairs
from tests.training.test_trainer import make_trainer

SAVING = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}


def test_checkpoints_are_counted_and_the_best_is_kept_by_its_true_name(tmp_path):
    pairs = TinyPairs(tiny_model("vit").config, 8)
    options = SAVING | {"save_total_limit": 2, "eval_strategy": "steps", "eval_steps": 2}
    trainer = make_trainer(tmp_path, eval_pairs=pairs, load_best_model_at_end=True, **options)
    trainer.train()
    checkpoints = sorted(path.name for path in tmp_path.glob("*checkpoint*"))
    assert len(checkpoints) == 2 and "checkpoint-6" in checkpoints
    assert not (tmp_path / "_unfinished").exists()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path and best.name in checkpoints
    state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    assert Path(state["best_model_checkpoint"]).parent == tmp_path


@pytest.mark.parametrize("num_steps", [6, 7])
def test_a_finished_run_is_not_trained_further(num_steps, tmp_path):
    make_trainer(tmp_path, max_steps=num_steps, save_strategy="steps", save_steps=num_steps).train()
    again = make_trainer(tmp_path, max_steps=num_steps)
    before = [parameter.clone() for parameter in again.model.parameters()]
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == num_steps
    trained = [torch.equal(*both) for both in zip(before, again.model.parameters(), strict=True)]
    assert not all(trained), "the weights are those of the checkpoint"


class SendSigterm(TrainerCallback):
    """To this process and to all that it started, as batch systems do."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
                process.terminate()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_sigterm_saves_and_ends_and_the_run_continues(num_workers, tmp_path):
    whole = make_trainer(tmp_path / "whole", max_steps=6)
    whole.train()
    former_handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        options = {"max_steps": 6, "dataloader_num_workers": num_workers}
        make_trainer(tmp_path / "stopped", callbacks=[SendSigterm()], **options).train()
    assert end.value.code == EXIT_CODE == 143
    assert signal.getsignal(signal.SIGTERM) is former_handler
    assert [path.name for path in (tmp_path / "stopped").glob("checkpoint-*")] == ["checkpoint-3"]
    resumed = make_trainer(tmp_path / "stopped", max_steps=6)
    resumed.train(resume_from_checkpoint="true")
    for parameter, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(parameter, expected)


class Signals(torch.utils.data.Dataset):
    """Whether the process that reads them heeds SIGTERM."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"heeds": signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN}


def test_workers_of_transformers_loaders_outlast_sigterm(tmp_path):
    trainer = make_trainer(tmp_path, dataloader_num_workers=1)
    trainer.data_collator = list
    assert [sample["heeds"] for batch in trainer.get_eval_dataloader(Signals()) for sample in batch] == [False, False]


@pytest.mark.gpu
def test_on_a_gpu_a_resumed_run_draws_the_random_numbers_of_a_whole_one(tmp_path):
    options = {"use_cpu": False, "max_steps": 6, "patch_dropout": 0.5, "grad_cache_chunk_size": 3, "bf16": True}
    torch.use_deterministic_algorithms(True)
    try:
        whole = make_trainer(tmp_path / "whole", **options)
        whole.train()
        stopped = options | {"save_strategy": "steps", "save_steps": 3}
        make_trainer(tmp_path / "stopped", **stopped).train()
        shutil.rmtree(tmp_path / "stopped" / "checkpoint-6")
        resumed = make_trainer(tmp_path / "stopped", **stopped)
        resumed.train(resume_from_checkpoint=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert whole.model.device.type == "cuda"
    for parameter, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_sigterm_leaves_the_newest_checkpoint_and_the_best(tmp_path):
    pairs = TinyPairs(tiny_model("vit").config, 8)
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    options |= {"save_total_limit": 1, "load_best_model_at_end": True, "metric_for_best_model": "first_step"}
    trainer = make_trainer(tmp_path, eval_pairs=pairs, callbacks=[SendSigterm()], max_steps=6, **options)
    trainer.compute_metrics = lambda prediction: {"first_step": -trainer.state.global_step}
    with pytest.raises(SystemExit):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-3"]


def best_of(folder, **options):
    """What a run with a metric that worsens with each step has evaluated, and the step of its best checkpoint."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "step", "greater_is_better": False}
    stop = [SendSigterm()] if options.pop("is_stopped", False) else None
    model = tiny_model("vit")
    trainer = make_trainer(folder, model, eval_pairs=TinyPairs(model.config, 8), callbacks=stop, **best, **options)
    steps = []
    trainer.compute_metrics = lambda prediction: steps.append(trainer.state.global_step) or {"step": steps[-1]}
    if stop is None:
        trainer.train(options.get("resume_from_checkpoint"))
    else:
        with pytest.raises(SystemExit):
            trainer.train()
    return steps, trainer.state.best_global_step


def test_sigterm_saves_a_step_that_is_not_the_best(tmp_path):
    options = {"max_steps": 5, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best"}
    assert best_of(tmp_path, is_stopped=True, **options)[0] == [1, 2, 3]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-3"]
    assert best_of(tmp_path, resume_from_checkpoint="true", **options) == ([4, 5], 1)


@pytest.mark.parametrize(("num_pairs", "before"), [(40, []), (24, [3])])
def test_an_epoch_that_sigterm_cuts_is_not_evaluated_as_one(num_pairs, before, tmp_path):
    """In the third step, of five or of three in an epoch: the best epoch is that of a whole run."""
    pairs = TinyPairs(tiny_model("vit").config, num_pairs)
    options = {
        "max_steps": -1,
        "num_train_epochs": 2,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "pairs": pairs,
    }
    whole, best = best_of(tmp_path / "whole", **options)
    assert best_of(tmp_path / "stopped", is_stopped=True, **options)[0] == before
    resumed, best_of_resumed = best_of(tmp_path / "stopped", resume_from_checkpoint="true", **options)
    assert (before + resumed, best_of_resumed) == (whole, best)


def test_a_finished_run_keeps_its_newest_checkpoint_and_is_not_trained_again_from_its_best(tmp_path):
    options = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    options |= {"save_total_limit": 1}
    assert best_of(tmp_path, **options) == ([1, 2, 3], 1)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-3"]
    assert best_of(tmp_path, resume_from_checkpoint="true", **options) == ([], 1)


def test_a_folder_that_was_moved_keeps_its_best_checkpoint(tmp_path):
    options = {"max_steps": 5, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    options |= {"save_total_limit": 1}
    best_of(tmp_path / "here", is_stopped=True, **options)
    (tmp_path / "here").rename(tmp_path / "there")
    assert best_of(tmp_path / "there", resume_from_checkpoint="true", **options) == ([4, 5], 1)
    checkpoints = sorted(path.name for path in (tmp_path / "there").glob("checkpoint-*"))
    assert checkpoints == ["checkpoint-1", "checkpoint-5"]


def test_a_run_that_saves_nothing_else_continues_from_what_sigterm_left(tmp_path):
    whole = make_trainer(tmp_path / "whole", max_steps=5)
    whole.train()
    with pytest.raises(SystemExit):
        make_trainer(tmp_path / "stopped", callbacks=[SendSigterm()], max_steps=5).train()
    again = make_trainer(tmp_path / "stopped", max_steps=5, resume_from_checkpoint="true")
    again.train(resume_from_checkpoint=again.args.resume_from_checkpoint)
    for parameter, expected in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_a_run_without_a_checkpoint_begins_anew(tmp_path, caplog):
    trainer = make_trainer(tmp_path, max_steps=2)
    logging.enable_propagation()
    trainer.train(resume_from_checkpoint=True)
    logging.disable_propagation()
    assert trainer.state.global_step == 2 and "the run begins anew" in caplog.text


def test_a_new_run_does_not_begin_among_the_checkpoints_of_another(tmp_path):
    """Or it would later be resumed from that one's last."""
    make_trainer(tmp_path, **SAVING).train()
    again = make_trainer(tmp_path, save_strategy="steps", save_steps=1)
    with pytest.raises(ValueError, match=r"such as checkpoint-\d, .* true, name another --output_dir, or delete them"):
        again.train()
    assert again.state.global_step == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1e-5}, "learning_rate was 0.0005 and is 1e-05"),
        ({"adam_beta2": 0.5}, "adam_beta2 was None and is 0.5"),
        ({"optim": "sgd"}, "optim was adamw_torch_fused and is sgd"),
        ({"image_locked_steps": -1}, "image_locked_steps was 0 and is -1"),
        ({"per_device_train_batch_size": 2}, "global_batch_size was 8 and is 2"),
    ],
)
def test_another_run_is_not_continued(changes, message, tmp_path):
    """What the optimizer's state holds would be taken from there, and a smaller batch end the run at once."""
    options = SAVING | {"per_device_train_batch_size": 8}
    make_trainer(tmp_path, **options | {"max_steps": 2}).train()
    again = make_trainer(tmp_path, **options | changes)
    with pytest.raises(ValueError, match=f"{message}. Restore it, or begin a new run .* --model .*checkpoint-2"):
        again.train(resume_from_checkpoint=True)


def test_another_model_is_not_continued(tmp_path):
    make_trainer(tmp_path, **SAVING | {"max_steps": 2}).train()
    model = tiny_model("vit")
    model.config.text_config.num_attention_heads *= 2
    with pytest.raises(ValueError, match=r"text_config.num_attention_heads was 4 and is 8"):
        make_trainer(tmp_path, model, **SAVING).train(resume_from_checkpoint=True)


def test_a_branch_does_not_grow_among_the_checkpoints_of_another(tmp_path):
    make_trainer(tmp_path, **SAVING).train()
    with pytest.raises(ValueError, match="has checkpoints that do not come from it, such as checkpoint-6"):
        make_trainer(tmp_path, **SAVING).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    last = make_trainer(tmp_path, **SAVING)
    last.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert last.state.global_step == 6


@pytest.mark.parametrize("num_lost", [0, 1])
def test_an_evaluation_that_was_missed_is_made_and_changes_no_number(num_lost, tmp_path):
    """The run is killed between the checkpoint of the last step of an epoch and its evaluation."""
    model = tiny_model("vit")
    pairs = {"pairs": TinyPairs(model.config, 24), "eval_pairs": TinyPairs(model.config, 8)}
    options = pairs | {"max_steps": -1, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3}
    options |= {"patch_dropout": 0.5, "eval_strategy": "epoch", "metric_for_best_model": "mean_recall"}
    whole = make_trainer(tmp_path / "whole", tiny_model("vit"), **options)
    whole.train()
    stopped = tmp_path / "stopped"
    make_trainer(stopped, tiny_model("vit"), **options).train()
    for step in (3, 6)[2 - num_lost :]:
        shutil.rmtree(stopped / f"checkpoint-{step}")
    resumed = make_trainer(stopped, tiny_model("vit"), **options)
    resumed.train(resume_from_checkpoint="true")
    of_whole, of_resumed = (
        {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
        for trainer in (whole, resumed)
    )
    assert len(of_whole) == 2 and of_resumed == {step: of_whole[step] for step in of_resumed}
    assert len(of_resumed) == 2
    assert resumed.state.best_metric == whole.state.best_metric
    for parameter, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_a_missed_evaluation_may_be_the_best(tmp_path):
    """Of a checkpoint that SIGTERM had saved when the epoch's evaluation was killed, as if that had never been."""
    options = {"max_steps": -1, "num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "epoch"}
    options |= {"pairs": TinyPairs(tiny_model("vit").config, 24), "save_total_limit": 1}
    best_of(tmp_path, is_stopped=True, **options)
    file = tmp_path / "checkpoint-3" / "trainer_state.json"
    state = json.loads(file.read_text())
    state["log_history"] = [entry for entry in state["log_history"] if "eval_step" not in entry]
    file.write_text(json.dumps(state | {"best_metric": None, "best_global_step": None, "best_model_checkpoint": None}))
    assert best_of(tmp_path, resume_from_checkpoint="true", **options) == ([3, 6], 3)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]


FULL_DISK = """
import resource, signal, sys
from tests.training.test_trainer import make_trainer
from transformers import TrainerCallback

class FillDisk(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
make_trainer(sys.argv[1], callbacks=[FillDisk()], max_steps=6, save_strategy="steps", save_steps=2).train()
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="files cannot be limited in size here")
def test_a_full_disk_ends_with_the_last_good_checkpoint_named_and_intact(tmp_path):
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert run.returncode != 0
    assert "The checkpoint of step 4 could not be written" in run.stderr
    assert f"The last good checkpoint is {tmp_path / 'checkpoint-2'}" in run.stderr
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-2"]
    resumed = make_trainer(tmp_path, **SAVING)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6


@pytest.fixture
def no_space(monkeypatch):
    """Makes every file that is brought to the disk find it full, from when it is called."""

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    return lambda: monkeypatch.setattr(os, "fsync", fail)


class Fill(TrainerCallback):
    """Calls something in a step."""

    def __init__(self, fill) -> None:
        self.fill = fill

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            self.fill()


def test_a_disk_that_is_full_when_files_are_brought_to_it_ends_alike(no_space, tmp_path):
    trainer = make_trainer(tmp_path, callbacks=[Fill(no_space)], **SAVING)
    with pytest.raises(RuntimeError, match=r"step 4 could not be written: .*No space left.* last good .*checkpoint-2"):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and path.name != "runs"] == ["checkpoint-2"]
    with pytest.raises(RuntimeError, match=r"The model could not be written: .*No space left.* .*checkpoint-2"):
        trainer.save_model()
    assert not (tmp_path / "_unfinished").exists() and not (tmp_path / "model.safetensors").exists()


def test_a_model_that_could_not_be_written_leaves_the_older_one(no_space, tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.save_model()
    before = (tmp_path / "model.safetensors").read_bytes()
    trainer.train()
    no_space()
    with pytest.raises(RuntimeError, match="There is no other checkpoint yet"):
        trainer.save_model()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_weights_alone_are_not_continued_from(tmp_path):
    make_trainer(tmp_path, save_only_model=True, **SAVING).train()
    with pytest.raises(ValueError, match="no optimizer and schedule, as save_only_model leaves it"):
        make_trainer(tmp_path, **SAVING).train(resume_from_checkpoint=True)
