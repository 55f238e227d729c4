import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import HfArgumentParser, TrainingArguments
from transformers.utils import logging

from clip_hf.training import ClipTrainingArguments

ROOT = Path(__file__).parents[2]
OWN_FIELDS = {
    "ema_decay",
    "exclude_duplicate_texts",
    "global_batch_size",
    "grad_cache_chunk_size",
    "grad_cache_text_chunk_size",
    "image_learning_rate",
    "image_locked_steps",
    "layer_decay",
    "loss_tile_size",
    "patch_dropout",
    "sync_batch_norm",
    "text_learning_rate",
    "text_locked_steps",
    "unmasked_share",
    "smaller_image_sizes",
    "full_size_share",
}


def make(tmp_path, **options) -> ClipTrainingArguments:
    return ClipTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)


@pytest.fixture
def launched(monkeypatch):
    """What a launcher leaves for DeepSpeed to find; the process group is not needed to read a configuration."""
    monkeypatch.setenv("RANK", "0")
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)


def test_own_options_are_these():
    """A new option is a decision: put it here and into the README."""
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert {field.name for field in dataclasses.fields(ClipTrainingArguments)} - inherited == OWN_FIELDS


def test_every_option_has_one_line_of_help_from_one_place():
    (parser_args,) = HfArgumentParser(ClipTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", "x", "--use_cpu", "--grad_cache_chunk_size", "64", "--image_learning_rate", "1e-4"]
    )
    assert (parser_args.grad_cache_chunk_size, parser_args.image_learning_rate) == (64, 1e-4)
    for field in dataclasses.fields(ClipTrainingArguments):
        if field.name in OWN_FIELDS:
            assert field.metadata["help"].endswith("."), field.name


def test_defaults_are_the_papers(tmp_path):
    args = make(tmp_path)
    assert (args.learning_rate, args.weight_decay, args.warmup_steps) == (5e-4, 0.2, 2000)
    assert args.lr_scheduler_type == "cosine"
    assert args.chunk_sizes == (None, None)
    assert args.dataloader_drop_last and not args.remove_unused_columns and not args.logging_nan_inf_filter
    assert args.ddp_find_unused_parameters is False


def test_without_an_accelerator_the_processor_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    args = ClipTrainingArguments(str(tmp_path))
    assert args.use_cpu and args.device.type == "cpu"


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_devices_share_the_global_batch(name, tmp_path, monkeypatch):
    assert make(tmp_path, global_batch_size=96).per_device_train_batch_size == 96
    monkeypatch.setenv(name, "4")
    args = ClipTrainingArguments.__new__(ClipTrainingArguments)
    args.global_batch_size, args.per_device_train_batch_size = 96, 8
    args._share_global_batch()
    assert args.per_device_train_batch_size == 24
    with pytest.raises(ValueError, match=r"98, which 4 processes cannot share equally: use a multiple of 4"):
        make(tmp_path, global_batch_size=98)
    with pytest.raises(ValueError, match=r"each of 4 processes 24 pairs, but per_device_train_batch_size is 32"):
        make(tmp_path, global_batch_size=96, per_device_train_batch_size=32)
    with pytest.raises(ValueError, match="global_batch_size is 0"):
        make(tmp_path, global_batch_size=0)


def test_processes_that_would_train_each_for_itself_are_refused(tmp_path, monkeypatch):
    """Those of MPI on GPUs, where accelerate looks for a launcher of torch's kind."""
    started = "clip_hf.training.training_args.get_cpu_distributed_information"
    monkeypatch.setattr(started, lambda: SimpleNamespace(world_size=4, local_world_size=1))
    with pytest.raises(ValueError, match=r"4 processes were started to share .* but 1 of them train .*torchrun"):
        make(tmp_path, global_batch_size=96)


def test_checkpoints_are_compared_by_recall(tmp_path):
    assert make(tmp_path).metric_for_best_model is None
    for options in (
        {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
        {"save_strategy": "best", "eval_strategy": "epoch"},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
    ):
        args = make(tmp_path, **options)
        assert (args.metric_for_best_model, args.greater_is_better) == ("mean_recall", True)
    args = make(tmp_path, save_strategy="best", eval_strategy="epoch", metric_for_best_model="zero_shot_accuracy")
    assert (args.metric_for_best_model, args.greater_is_better) == ("zero_shot_accuracy", True)


@pytest.mark.parametrize("scheduler", ["reduce_lr_on_plateau", "greedy"])
def test_rates_that_follow_a_metric_follow_it_upwards(scheduler, tmp_path):
    options = {"lr_scheduler_type": scheduler, "eval_strategy": "epoch"}
    assert make(tmp_path, **options).lr_scheduler_kwargs == {"mode": "max"}
    found = make(
        tmp_path, metric_for_best_model="text_retrieval_mean_rank", lr_scheduler_kwargs={"patience": 3}, **options
    )
    assert found.lr_scheduler_kwargs == {"mode": "min", "patience": 3}
    assert make(tmp_path).lr_scheduler_kwargs is None


def test_the_best_rank_is_the_least(tmp_path):
    for metric in ("text_retrieval_median_rank", "eval_image_retrieval_mean_rank"):
        assert make(tmp_path, metric_for_best_model=metric).greater_is_better is False
        assert make(tmp_path, metric_for_best_model=metric, greater_is_better=True).greater_is_better is True


def test_texts_have_the_chunks_of_images_unless_told(tmp_path):
    assert make(tmp_path, grad_cache_chunk_size=8).chunk_sizes == (8, 8)
    assert make(tmp_path, grad_cache_chunk_size=8, grad_cache_text_chunk_size=32).chunk_sizes == (8, 32)
    assert make(tmp_path, grad_cache_text_chunk_size=32).chunk_sizes == (None, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 32},
            "per_device_train_batch_size=128 and grad_cache_chunk_size=32",
        ),
        ({"auto_find_batch_size": True}, "grad_cache_chunk_size"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is 0.1"),
        ({"grad_cache_chunk_size": 0}, "grad_cache_chunk_size is 0"),
        ({"grad_cache_text_chunk_size": -1}, "grad_cache_text_chunk_size is -1"),
        ({"loss_tile_size": 0}, "loss_tile_size is 0"),
        ({"image_learning_rate": -1.0}, "image_learning_rate is -1.0"),
        ({"text_learning_rate": -1.0}, "text_learning_rate is -1.0"),
        ({"image_locked_steps": 2.5}, "image_locked_steps is 2.5"),
        ({"text_locked_steps": -2}, "text_locked_steps is -2"),
        ({"image_locked_steps": float("inf")}, "image_locked_steps is inf, but must be a number of steps"),
        ({"batch_eval_metrics": True}, "batch_eval_metrics is set, but retrieval is of the whole evaluation set"),
        ({"accelerator_config": '{"foo": false}'}, "accelerator_config has foo, but knows .*even_batches, .*: leave"),
        ({"patch_dropout": 1.0}, "patch_dropout is 1.0"),
        ({"patch_dropout": 0.5, "image_locked_steps": -1}, "drop one of the two"),
        ({"unmasked_share": 0.1}, "there is no patch_dropout to end"),
        ({"full_size_share": 0.3}, "there are no smaller_image_sizes"),
        ({"global_batch_size": 12.5}, "global_batch_size is 12.5, but must be a whole number"),
        ({"grad_cache_chunk_size": [1, 2]}, r"grad_cache_chunk_size is \[1, 2\], but must be a whole number"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0, but must be at least 0"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"metric_for_best_model": "eval_loss"}, "metric_for_best_model is eval_loss"),
        ({"metric_for_best_model": "loss"}, "depends on the batch"),
        ({"metric_for_best_model": "zero_shot_num_broken"}, "a count that says nothing"),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "launcher"),
        ({"deepspeed": "zero2.json"}, "deepspeed is 'zero2.json', but there is no such file: scripts/deepspeed"),
    ],
)
def test_what_would_change_the_objective_or_cannot_work_is_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr("clip_hf.training.engine_args.find_spec", lambda name: None)  # no MPI
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **options)


def test_several_gpus_in_one_process_are_refused_with_the_command_to_use(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("sys.argv", ["train.py", "recipe.yaml"])
    with pytest.raises(ValueError, match=r"torchrun --nproc_per_node 2 train.py recipe.yaml"):
        ClipTrainingArguments(output_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"optimizer": {"type": "AdamW"}}, "section 'optimizer'"),
        ({"scheduler": {"type": "WarmupLR"}}, "section 'scheduler'"),
        ({"bf16": {"enabled": True}}, "enables 'bf16'"),
        ({"fp16": {"enabled": True}}, "enables 'fp16'"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast.enabled=True, but bf16=False"),
    ],
)
def test_deepspeed_configurations_that_change_what_is_trained_are_refused(config, message, tmp_path, launched):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, deepspeed={"zero_optimization": {"stage": 2}} | config)


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3", "zero3_offload"])
@pytest.mark.parametrize("bf16", [False, True])
def test_bf16_is_autocast_under_deepspeed(stage, bf16, tmp_path, launched):
    args = make(tmp_path, deepspeed=str(ROOT / "scripts" / "deepspeed" / f"{stage}.json"), bf16=bf16)
    config = args.deepspeed_plugin.deepspeed_config
    # No module's gradients are reduced in bfloat16.
    assert config["torch_autocast"] == {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert args.mixed_precision == "no" and "bf16" not in config
    for key in ("reduce_bucket_size", *(["stage3_prefetch_bucket_size"] if stage.startswith("zero3") else [])):
        assert isinstance(config["zero_optimization"][key], int), "transformers' own choice is tiny for CLIP"


def test_fp16_is_refused_under_deepspeed(tmp_path, launched):
    with pytest.raises(ValueError, match="bf16=True"):
        make(tmp_path, deepspeed={"zero_optimization": {"stage": 2}}, fp16=True)


@pytest.mark.parametrize(
    ("engine", "option"), [("DEEPSPEED", "--deepspeed scripts/deepspeed/zero2.json"), ("FSDP", "--fsdp true")]
)
def test_an_engine_that_the_launcher_alone_asks_for_is_refused(engine, option, tmp_path, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(ValueError, match=f"add `{option}`"):
        make(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "own", "option"),
    [
        ("MIXED_PRECISION", "bf16", {}, "`--bf16 true`"),
        ("MIXED_PRECISION", "fp16", {"bf16": True}, "`--fp16 true`"),
        ("MIXED_PRECISION", "fp8", {}, "launch with `--mixed_precision no`"),
        ("DYNAMO_BACKEND", "INDUCTOR", {}, "`--torch_compile_backend inductor`"),
        ("DYNAMO_BACKEND", "EAGER", {"torch_compile": True}, "`--torch_compile_backend eager`"),
    ],
)
def test_what_the_launcher_alone_asks_for_is_refused(name, value, own, option, tmp_path, monkeypatch):
    """One launcher would train in another precision than the next, and no file of the run would say so."""
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    with pytest.raises(ValueError, match=f"accelerate launch was told .*{option}"):
        make(tmp_path, **own)


def test_what_launcher_and_command_agree_on_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    assert make(tmp_path, bf16=True, torch_compile=True).mixed_precision == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    for compiled in ({"torch_compile": True}, {"torch_compile_mode": "default"}):
        assert make(tmp_path, bf16=True, **compiled).torch_compile_backend == "inductor"


def test_fsdp_is_asked_for_by_a_truth_value(tmp_path):
    assert make(tmp_path, fsdp="true").fsdp_plugin_args["fsdp_version"] == 2
    assert make(tmp_path, fsdp="false").fsdp_plugin_args is None


def test_an_interrupted_build_of_deepspeed_is_named(tmp_path, launched, monkeypatch):
    """DeepSpeed would wait for the file, in silence and for ever."""
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr("clip_hf.training.engine_args.dist", SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setattr("deepspeed.init_distributed", lambda: None)
    warnings = []
    monkeypatch.setattr("clip_hf.training.engine_args.logger.warning", warnings.append)
    make(tmp_path, deepspeed={"zero_optimization": {"stage": 2}})
    assert len(warnings) == 1 and str(lock) in warnings[0]
    lock.unlink()
    make(tmp_path, deepspeed={"zero_optimization": {"stage": 2}})
    assert len(warnings) == 1


def test_bf16_rounds_no_parameter_under_fsdp(tmp_path):
    policy = make(tmp_path, fsdp=True, bf16=True).fsdp_plugin_args["mixed_precision_policy"]
    assert policy.param_dtype is policy.output_dtype is None


def test_fsdp_1_is_refused(tmp_path):
    with pytest.raises(ValueError, match="version 2"):
        make(tmp_path, fsdp=True, fsdp_config={"version": 1})


@pytest.mark.parametrize(
    ("cores", "processes", "expected"), [(1, 1, 1), (2, 1, 1), (2, 2, 1), (16, 1, 8), (16, 4, 3), (64, 4, 8)]
)
def test_data_is_prepared_by_a_share_of_the_cores(cores, processes, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert make(tmp_path).dataloader_num_workers == expected
    assert make(tmp_path, dataloader_num_workers=0).dataloader_num_workers == 0
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setenv("LOCAL_SIZE", str(processes))  # of DeepSpeed's launcher
    assert make(tmp_path).dataloader_num_workers == expected


def test_without_evaluation_there_is_none_at_the_start(tmp_path):
    assert make(tmp_path, eval_on_start=True, eval_strategy="epoch").eval_on_start
    assert not make(tmp_path, eval_on_start=True).eval_on_start


def test_checkpoints_that_would_be_missing_are_told(tmp_path, caplog):
    with pytest.raises(ValueError, match="save_only_model is, too, which leaves nothing to continue from"):
        make(tmp_path, resume_from_checkpoint="True", save_only_model=True)
    logging.enable_propagation()
    make(tmp_path, resume_from_checkpoint="true", save_strategy="no")
    logging.disable_propagation()
    assert "only what SIGTERM leaves can be continued" in caplog.text


def test_other_ways_to_save_and_resume_are_none(tmp_path):
    make(tmp_path, save_steps=2, resume_from_checkpoint="true")
    make(tmp_path, save_strategy="no", resume_from_checkpoint="outputs/run/checkpoint-2")
    make(tmp_path, save_strategy="no", resume_from_checkpoint="false")


def test_the_steps_of_a_recipe_may_be_left_unheeded_but_not_in_silence(tmp_path, caplog):
    logging.enable_propagation()
    assert make(tmp_path, save_steps=2, save_strategy="epoch").save_strategy == "epoch"
    logging.disable_propagation()
    assert "save_steps is 2, but save_strategy is 'epoch', which knows no steps" in caplog.text
