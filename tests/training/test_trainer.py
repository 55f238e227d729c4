import json
import math
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from transformers import AutoModel, CLIPConfig, CLIPModel, TrainerCallback, TrainingArguments
from transformers.utils import logging

from clip_hf.training import ClipTrainer, ClipTrainingArguments
from clip_hf.training.engines import require_engine
from tests.tiny_models import TOWERS, tiny_model
from tests.tiny_pairs import TinyPairs, collate

NUM_EVAL_PAIRS = 13


def make_trainer(folder, model=None, pairs=None, eval_pairs=None, callbacks=None, **options) -> ClipTrainer:
    model = tiny_model("vit") if model is None else model
    defaults = {
        "use_cpu": True,
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
    }
    args = ClipTrainingArguments(output_dir=str(folder), **(defaults | options))
    pairs = TinyPairs(model.config, 24) if pairs is None else pairs
    return ClipTrainer(model, args, collate, pairs, eval_pairs, callbacks=callbacks)


@pytest.fixture
def warnings_of_transformers(caplog):
    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()


class Reporter(TrainerCallback):
    """Keeps what every `report_to` is given."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def test_a_step_logs_what_a_run_is_judged_by(tmp_path):
    reporter = Reporter()
    trainer = make_trainer(tmp_path, callbacks=[reporter], logging_steps=3)
    trainer.train()
    entry = reporter.logs[0]
    assert entry.keys() == {
        *("loss", "grad_norm", "learning_rate", "scale"),
        *("text_retrieval_accuracy", "image_retrieval_accuracy", "pairs_per_second", "epoch"),
    }
    assert entry | {"step": 3} == trainer.state.log_history[0]
    assert all(isinstance(value, int | float) for log in reporter.logs for value in log.values())
    assert entry["loss"] == pytest.approx(math.log(8), abs=1.5)
    assert entry["scale"] == pytest.approx(1 / 0.07, rel=0.01)


def test_a_model_that_returns_tuples_trains_and_is_evaluated(tmp_path):
    model = tiny_model("vit")
    model.config.return_dict = False
    trainer = make_trainer(tmp_path, model, eval_pairs=TinyPairs(model.config, NUM_EVAL_PAIRS))
    trainer.train()
    assert "eval_mean_recall" in trainer.evaluate()


@pytest.mark.parametrize("tower", TOWERS)
def test_activation_checkpointing_inside_chunks_changes_nothing(tower, tmp_path):
    """A ResNet's images stay in the chunks that its batch norm sees."""
    trainers = [
        make_trainer(tmp_path, tiny_model(tower), grad_cache_chunk_size=4, activation_checkpointing=checkpointing)
        for checkpointing in (False, True)
    ]
    for trainer in trainers:
        trainer.train()
    plain, checkpointed = (dict(trainer.model.state_dict()) for trainer in trainers)
    for name, tensor in plain.items():
        assert torch.equal(checkpointed[name], tensor), name


@pytest.mark.parametrize(("tower", "chunk_size"), [("vit", None), ("vit", 4), ("resnet", 4)])
def test_compiled_towers_train_as_they_do_otherwise(tower, chunk_size, tmp_path):
    """In one graph each, and chunks, too; a ResNet's statistics move once a chunk."""
    torch._dynamo.reset()
    counters.clear()
    trainers = [
        make_trainer(tmp_path / "plain", tiny_model(tower), grad_cache_chunk_size=chunk_size),
        make_trainer(
            tmp_path / "compiled",
            tiny_model(tower),
            grad_cache_chunk_size=chunk_size,
            torch_compile_backend="aot_eager",
        ),
    ]
    for trainer in trainers:
        trainer.train()
        trainer.save_model()
    plain, compiled = (AutoModel.from_pretrained(trainer.args.output_dir).state_dict() for trainer in trainers)
    assert counters["stats"]["unique_graphs"] >= 2
    assert not counters["graph_break"]
    assert compiled.keys() == plain.keys()
    for name, tensor in plain.items():
        assert torch.allclose(compiled[name].float(), tensor.float(), atol=1e-4), name


@pytest.mark.peers
def test_eight_bit_averages_train_nearly_as_others(tmp_path):
    pytest.importorskip("torchao", reason="adamw_torch_8bit needs torchao")
    logs = []
    for optim in ("adamw_torch", "adamw_torch_8bit"):
        trainer = make_trainer(tmp_path, optim=optim)
        trainer.train()
        logs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert logs[1] == pytest.approx(logs[0], rel=1e-3)


def test_adam_is_told_what_the_paper_tells_it(tmp_path):
    for tower, beta2, epsilon in (("vit", 0.98, 1e-6), ("resnet", 0.999, 1e-8)):
        optimizer = make_trainer(tmp_path, tiny_model(tower)).create_optimizer()
        assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {((0.9, beta2), epsilon)}
    optimizer = make_trainer(tmp_path, adam_beta2=0.95, adam_epsilon=1e-5).create_optimizer()
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {((0.9, 0.95), 1e-5)}


def test_decay_and_learning_rates_reach_the_optimizer(tmp_path):
    trainer = make_trainer(tmp_path, learning_rate=1e-3, image_learning_rate=1e-4, text_learning_rate=1e-5)
    groups = trainer.create_optimizer().param_groups
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    learning_rates = {"vision_model": 1e-4, "text_model": 1e-5, "logit_scale": 1e-3}
    for name, parameter in trainer.model.named_parameters():
        expected = (learning_rates[name.split(".")[0]], 0.2 if parameter.ndim >= 2 else 0.0)
        assert found[id(parameter)] == expected, name


def test_a_tower_at_rate_zero_stays_and_the_log_shows_the_other_rate(tmp_path):
    trainer = make_trainer(tmp_path, image_learning_rate=0.0, learning_rate=1e-3, lr_scheduler_type="constant")
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {name.split(".")[0] for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"text_model", "logit_scale"}
    assert trainer.state.log_history[0]["learning_rate"] == 1e-3


@pytest.mark.parametrize("steps", [3, 20])
def test_a_warm_up_without_end_is_warned_of(steps, tmp_path, warnings_of_transformers):
    make_trainer(tmp_path, warmup_steps=5, max_steps=steps).create_optimizer_and_scheduler(steps)
    assert ("warm-up of 5 steps does not end" in warnings_of_transformers.text) == (steps < 5)


def test_evaluation_is_that_of_the_set_whatever_the_batches(tmp_path):
    trainer = make_trainer(tmp_path, per_device_eval_batch_size=4)
    pairs = TinyPairs(trainer.model.config, NUM_EVAL_PAIRS)
    metrics = trainer.evaluate(pairs)

    batch = collate([pairs[index] for index in range(NUM_EVAL_PAIRS)])
    with torch.no_grad():
        logits = trainer.model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"]).logits_per_image
    labels = torch.arange(NUM_EVAL_PAIRS)
    loss = (nn.functional.cross_entropy(logits, labels) + nn.functional.cross_entropy(logits.T, labels)) / 2
    assert metrics["eval_loss"] == pytest.approx(loss.item(), rel=1e-5)
    ranks = (logits > logits.diagonal()[:, None]).sum(dim=1)
    assert metrics["eval_text_retrieval_recall@5"] == pytest.approx((ranks < 5).float().mean().item())
    assert trainer.args.dataloader_drop_last, "training still leaves out its last batch"


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_all_processes_evaluate_with_the_statistics_of_the_one_that_saves(method, tmp_path, monkeypatch):
    monkeypatch.setattr("clip_hf.training.trainer.broadcast", torch.ones_like)
    trainer = make_trainer(tmp_path, tiny_model("resnet"))
    getattr(trainer, method)(TinyPairs(trainer.model.config, NUM_EVAL_PAIRS))
    assert all((buffer == 1).all() for name, buffer in trainer.model.named_buffers() if "running" in name)


def test_own_metrics_are_given_embeddings_and_scale(tmp_path):
    seen = []

    def compute_metrics(prediction):
        seen.extend(array.shape for array in prediction.predictions)
        return {"answer": 42}

    trainer = make_trainer(tmp_path)
    trainer.compute_metrics = compute_metrics
    metrics = trainer.evaluate(TinyPairs(trainer.model.config, NUM_EVAL_PAIRS))
    assert metrics["eval_answer"] == 42 and "eval_loss" not in metrics
    assert seen == [(NUM_EVAL_PAIRS, 32), (NUM_EVAL_PAIRS, 1, 32), (NUM_EVAL_PAIRS,), (NUM_EVAL_PAIRS,)]


def test_the_best_checkpoint_is_that_of_the_best_recall(tmp_path):
    pairs = TinyPairs(tiny_model("vit").config, NUM_EVAL_PAIRS)
    options = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    trainer = make_trainer(tmp_path, eval_pairs=pairs, load_best_model_at_end=True, learning_rate=1e-2, **options)
    trainer.train()
    recalls = [entry["eval_mean_recall"] for entry in trainer.state.log_history if "eval_mean_recall" in entry]
    assert trainer.state.best_metric == max(recalls)
    assert trainer.evaluate()["eval_mean_recall"] == pytest.approx(max(recalls))


class Break(TrainerCallback):
    """Spoils the model before a step, as a bad batch or a bad machine would."""

    def __init__(self, step: int, spoil) -> None:
        self.step, self.spoil = step, spoil

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            self.spoil(model)


def spoil_one_token(model: nn.Module) -> None:
    # The first token behind the start of pair 20's text, which no other text of the batch need have.
    token = TinyPairs(model.config, 24).input_ids[20, 1]
    model.text_model.embeddings.token_embedding.weight.data[token] = math.nan


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "train_sampling_strategy": "sequential"}
    trainer = make_trainer(tmp_path, callbacks=[Break(3, spoil_one_token)], **options)
    with pytest.raises(FloatingPointError, match=r"step 3 the loss is nan.*'pair-20'.*checkpoint-2$"):
        trainer.train()


def test_without_names_the_rows_are_named(tmp_path):
    trainer = make_trainer(tmp_path, callbacks=[Break(1, spoil_one_token)], train_sampling_strategy="sequential")
    trainer.train_dataset = torch.utils.data.Subset(trainer.train_dataset, range(16, 24))
    trainer.data_collator = lambda pairs: {key: value for key, value in collate(pairs).items() if key != "sample_ids"}
    with pytest.raises(
        FloatingPointError, match=r"step 1 the loss is nan.*Rows \[.*4.*\].*There is no checkpoint yet"
    ):
        trainer.train()


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step(tmp_path):
    def spoil(model):
        model.logit_scale.register_hook(lambda gradient: gradient * math.inf)

    trainer = make_trainer(tmp_path, callbacks=[Break(2, spoil)])
    with pytest.raises(FloatingPointError, match=r"step 2 the gradient norm is (inf|nan)"):
        trainer.train()
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_no_file_holds_the_token(tmp_path):
    pairs = TinyPairs(tiny_model("vit").config, NUM_EVAL_PAIRS)
    trainer = make_trainer(
        tmp_path, eval_pairs=pairs, hub_token="hf_SECRET", save_strategy="steps", save_steps=1, save_total_limit=1
    )
    trainer.train()
    trainer.save_model()
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"training_args.bin", "results.json", "optimizer.pt"} <= {file.name for file in written}
    assert not [file for file in written if b"hf_SECRET" in file.read_bytes()]
    assert trainer.args.hub_token == "hf_SECRET"


@pytest.mark.parametrize(
    "options",
    [{"image_locked_steps": 2}, {"text_locked_steps": 0.5}, {"image_learning_rate": 0.0}, {"layer_decay": 0.5}],
)
def test_an_optimizer_that_is_made_has_its_own_rates(options, tmp_path):
    model = tiny_model("vit")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (name,) = options
    args = ClipTrainingArguments(str(tmp_path), use_cpu=True, **options)
    with pytest.raises(ValueError, match=f"{name} is .*, but the optimizer is made already"):
        ClipTrainer(model, args, optimizers=(optimizer, None))
    args = ClipTrainingArguments(str(tmp_path), use_cpu=True, image_locked_steps=-1)
    assert ClipTrainer(model, args, optimizers=(optimizer, None)).optimizer is optimizer


def test_batches_of_the_training_set_have_no_other_order(tmp_path):
    pairs = TinyPairs(tiny_model("vit").config, 8)
    pairs.loader = None
    with pytest.raises(ValueError, match="train_sampling_strategy is 'sequential', but"):
        make_trainer(tmp_path, pairs=pairs, train_sampling_strategy="sequential")


def test_results_and_curves_are_written_at_the_end(tmp_path):
    pairs = TinyPairs(tiny_model("vit").config, NUM_EVAL_PAIRS)
    trainer = make_trainer(tmp_path, eval_pairs=pairs, eval_strategy="steps", eval_steps=3)
    trainer.train()
    trainer.save_model()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["training"]["num_pairs_seen"] == 24 and results["training"]["steps"] == 3
    assert results["num_parameters"] == sum(parameter.numel() for parameter in trainer.model.parameters())
    assert results["evaluation"]["eval_mean_recall"] == trainer.state.log_history[-2]["eval_mean_recall"]
    assert results["history"] == trainer.state.log_history
    assert (tmp_path / "curves.png").stat().st_size > 0
    reloaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(reloaded.logit_scale, trainer.model.logit_scale)


def test_without_matplotlib_the_run_ends_with_a_message(tmp_path, monkeypatch, warnings_of_transformers):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    make_trainer(tmp_path).train()
    assert "matplotlib is missing" in warnings_of_transformers.text
    assert (tmp_path / "results.json").exists()


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_resumed_run_is_an_uninterrupted_one(chunk_size, tmp_path):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "grad_cache_chunk_size": chunk_size}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for parameter, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_the_training_set_learns_of_each_epoch(tmp_path):
    class Pairs(TinyPairs):
        epochs = []

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

    pairs = Pairs(tiny_model("vit").config, 16)
    make_trainer(tmp_path, pairs=pairs, max_steps=5).train()
    assert sorted(set(pairs.epochs)) == [0, 1, 2]


def test_other_arguments_models_and_engines_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must be ClipTrainingArguments"):
        ClipTrainer(tiny_model("vit"), TrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    with pytest.raises(ValueError, match="type 'clip'"):
        make_trainer(tmp_path, CLIPModel(CLIPConfig(text_config=tower, vision_config=tower)), pairs=[1])
    with pytest.raises(ValueError, match="type 'None'"):
        make_trainer(tmp_path, nn.Linear(1, 1), pairs=[1])
    with pytest.raises(ValueError, match="compute_loss_func"):
        args = ClipTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
        ClipTrainer(tiny_model("vit"), args, compute_loss_func=lambda *_: 0)
    with pytest.raises(ValueError, match="model_init would make a model"):
        ClipTrainer(None, args, model_init=lambda: tiny_model("vit"))
    with pytest.raises(ValueError, match="24 pairs, fewer than the batch of all devices, 32 x 1"):
        make_trainer(tmp_path, per_device_train_batch_size=32).train()
    trainer = make_trainer(tmp_path)
    trainer.args.fsdp = True  # which accelerate passes over on a CPU
    with pytest.raises(ValueError, match="FSDP is asked for, but on cpu"):
        require_engine(trainer.args, trainer.accelerator)
