"""Options that cannot go together are refused, before any data is read and whoever asks for them."""

from pathlib import Path

import pytest
from transformers.utils import logging

from clip_hf import ClipHfConfig
from clip_hf.data.data_args import DataArguments
from clip_hf.training import ClipTrainingArguments
from clip_hf.training.combinations import check_command, check_options
from clip_hf.training.lora import Adapter, check_adapter, rank_in
from clip_hf.training.model_args import ModelArguments
from clip_hf.training.recipe import parse_recipe
from clip_hf.training.zero_shot import ZeroShotArguments
from tests.tiny_models import tiny_config, tiny_model
from tests.training.test_trainer import make_trainer

RECIPES = Path(__file__).parents[2] / "scripts" / "recipes"


def check(model_args, args, dry_run_data=None, eval_data=None, **zero_shot):
    data_args = DataArguments(["shapes"], eval_data=eval_data, dry_run_data=dry_run_data)
    check_command(model_args, data_args, ZeroShotArguments(**zero_shot), args)


def arguments(folder="outputs", **options) -> ClipTrainingArguments:
    return ClipTrainingArguments(str(folder), use_cpu=True, **options)


@pytest.mark.parametrize(
    ("tower", "options", "problem"),
    [
        ("resnet", {"patch_dropout": 0.5}, "patch_dropout is 0.5, but the image tower is a ResNet"),
        ("vit", {"sync_batch_norm": True}, "the image tower has no batch norm"),
        ("resnet", {"sync_batch_norm": True, "image_locked_steps": -1}, "its statistics with it"),
        (
            "vit",
            {"image_locked_steps": -1, "text_locked_steps": -1},
            "and text_locked_steps are -1",
        ),
        ("vit", {"image_locked_steps": 9, "max_steps": 2}, "image_locked_steps is 9, but the run has 2 steps"),
        ("vit", {"text_locked_steps": 0.9, "max_steps": 2}, "text_locked_steps is 0.9, but the run has 2 steps"),
        ("vit", {"image_locked_steps": -1, "image_learning_rate": 1e-3}, "image_learning_rate is 0.001, but"),
        ("vit", {"text_locked_steps": -1, "text_learning_rate": 1e-3}, "text_learning_rate is 0.001, but"),
        (
            "vit",
            {"smaller_image_sizes": [16, 32]},
            "has 32, but the model's images have 32 pixels: take multiples of 8",
        ),
        ("vit", {"smaller_image_sizes": [20]}, "smaller_image_sizes has 20"),
        ("resnet", {"smaller_image_sizes": [48]}, "take multiples of 32"),
        ("vit", {"optim": "adamw_bnb_8bit", "image_locked_steps": 2}, "counts the steps of a locked tower"),
    ],
)
def test_what_cannot_go_together_is_named(tower, options, problem):
    with pytest.raises(ValueError, match=problem):
        check_options(arguments(**options), tiny_config(tower))


@pytest.mark.parametrize(
    ("optim", "library"),
    [("adamw_torch_8bit", "torchao"), ("adamw_torch_4bit", "torchao"), ("lion_8bit", "bitsandbytes")],
)
def test_an_optimizer_whose_library_is_missing_is_refused(optim, library, monkeypatch):
    monkeypatch.setattr("clip_hf.training.combinations.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"pip install {library}"):
        check(ModelArguments(), arguments(optim=optim))


@pytest.mark.parametrize("optim", ["adamw_torch_8bit", "adamw_torch_4bit"])
def test_averages_of_few_bits_that_deepspeed_would_leave_at_32_are_refused(optim):
    args = arguments(optim=optim)
    args.deepspeed = "zero2.json"
    with pytest.raises(ValueError, match=f"optim is {optim}, but DeepSpeed's parts"):
        check_options(args, tiny_config("vit"))


def test_what_can_go_together_is_not():
    both = {"image_locked_steps": 1, "text_locked_steps": 1, "max_steps": 2}
    for options in (both, both | {"max_steps": -1}, {"image_locked_steps": -1, "text_learning_rate": 1e-3}):
        check_options(arguments(**options), tiny_config("vit"))


def test_an_adapter_goes_with_no_engine_that_divides_weights_and_no_push():
    args = arguments()
    args.fsdp, args.push_to_hub = True, True
    with pytest.raises(ValueError, match="cannot go with push_to_hub, FSDP"):
        check_adapter(2, args, tiny_config("vit"))
    args = arguments()
    args.deepspeed, args.hf_deepspeed_config = "zero3.json", type("Config", (), {"is_zero3": lambda self: True})()
    with pytest.raises(ValueError, match="cannot go with ZeRO-3"):
        check_adapter(2, args, tiny_config("vit"))


def test_a_command_is_checked_by_the_architecture_and_its_changes():
    check(ModelArguments(), arguments(patch_dropout=0.5))
    with pytest.raises(ValueError, match="image tower is a ResNet"):
        check(ModelArguments(architecture="RN50"), arguments(patch_dropout=0.5))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"model": "a", "architecture": "RN50"}, "architecture is RN50, but that of model a is taken"),
        ({"model": "a", "vocab_size": 600}, "vocab_size is 600, but that of model a is taken"),
        ({"tokenizer": "a", "vocab_size": 600}, "vocab_size is 600, but that of tokenizer a is taken"),
        ({"config": "{bad"}, "config is '{bad', but must be JSON such as"),
        ({"config": "3"}, "config is '3', but must be JSON such as"),
        ({"config": '{"vision_config": 3}'}, "config has vision_config 3, but must map its fields to values, such as"),
        ({"config": {"text_config": [1]}, "image_size": 32}, r"config has text_config \[1\], but must map"),
    ],
)
def test_what_would_not_be_heeded_is_refused(options, problem):
    with pytest.raises(ValueError, match=problem):
        ModelArguments(**options)


def test_a_configuration_has_every_change():
    args = ModelArguments(architecture="RN50", config='{"vision_config": {"width": 8}}', image_size=64)
    config = args.build_config(vocab_size=600)
    assert (config.vision_config.width, config.vision_config.image_size) == (8, 64)
    assert config.text_config.vocab_size == 600
    assert args.build_config().text_config.vocab_size == ClipHfConfig().text_config.vocab_size


def test_an_order_that_no_training_set_of_a_command_has_is_refused():
    with pytest.raises(ValueError, match="train_sampling_strategy is 'sequential', but"):
        check(ModelArguments(), arguments(train_sampling_strategy="sequential"))


def test_a_smaller_last_batch_is_that_of_one_process(monkeypatch):
    args = arguments(dataloader_drop_last=False)
    check(ModelArguments(), args)
    monkeypatch.setattr(ClipTrainingArguments, "world_size", 2)
    with pytest.raises(ValueError, match=r"dataloader_drop_last is false, but .* equally by 2 processes"):
        check(ModelArguments(), args)


def test_what_engines_cannot_do_is_known_before_they_are_made():
    """And before data is read."""
    args = arguments(eval_strategy="epoch")
    args.fsdp = True
    with pytest.raises(ValueError, match="on a CPU would train without it"):
        check_options(args, tiny_config("vit"))
    args.fsdp, args.deepspeed = False, "zero3.json"
    args.hf_deepspeed_config = type("Config", (), {"is_zero3": lambda self: True})()
    with pytest.raises(ValueError, match="zero-shot evaluation during training needs the whole model"):
        check(ModelArguments(), args, zero_shot_data="shapes")
    args.ema_decay = 0.9
    with pytest.raises(ValueError, match="but ZeRO-3 and FSDP leave"):
        check_options(args, tiny_config("vit"))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"grad_cache_chunk_size": 4}, "grad_cache_chunk_size"),
        ({"grad_cache_text_chunk_size": 4}, "grad_cache_text_chunk_size"),
        ({"activation_checkpointing": True}, "activation_checkpointing"),
    ],
)
def test_compiled_towers_that_fsdp_divides_are_computed_once(options, name):
    args = arguments(torch_compile_backend="aot_eager", **options)
    check_options(args, tiny_config("vit"))
    args.fsdp = True
    with pytest.raises(ValueError, match=f"torch_compile and {name} are set, but where FSDP"):
        check_options(args, tiny_config("vit"))


def test_a_new_run_is_not_begun_among_checkpoints(tmp_path):
    (tmp_path / "checkpoint-3.whole").mkdir()  # the last step of its writing is still to come
    with pytest.raises(ValueError, match=r"has checkpoints of a run already, such as checkpoint-3.whole"):
        check(ModelArguments(), arguments(tmp_path))
    check(ModelArguments(), arguments(tmp_path), dry_run_data=5)
    check(ModelArguments(), arguments(tmp_path, resume_from_checkpoint="true"))


def test_checkpoints_amid_an_adapters_training_are_for_that_training_alone(tmp_path):
    model = tiny_model("vit")
    model.save_pretrained(tmp_path / "base")
    args = make_trainer(tmp_path, model).args
    Adapter(model, 2, args)
    trainer = make_trainer(tmp_path, model, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    checkpoint = str(tmp_path / "checkpoint-1")
    assert (rank_in(checkpoint), rank_in(tmp_path / "base"), rank_in("nowhere")) == (2, None, None)

    with pytest.raises(ValueError, match="amid a training with lora_rank 2"):
        check(ModelArguments(model=checkpoint), arguments())
    base = str(tmp_path / "base")
    for resume_from in (checkpoint, "true"):
        again = arguments(tmp_path, resume_from_checkpoint=resume_from)
        check(ModelArguments(model=base, lora_rank=2), again)
        for rank in (None, 4):
            with pytest.raises(ValueError, match=f"lora_rank is {rank}, but that of .* is 2: give the same"):
                check(ModelArguments(model=base, lora_rank=rank), again)


@pytest.mark.parametrize("data", [{"eval_data": "shapes"}, {"zero_shot_data": "photos"}])
def test_data_that_nothing_is_evaluated_on_is_warned_of(data, tmp_path, caplog):
    """A recipe may hold it."""
    logging.enable_propagation()
    check(ModelArguments(), arguments(tmp_path, eval_strategy="no"), **data)
    logging.disable_propagation()
    (name, value), *_ = data.items()
    assert f"{name} is {value}, but eval_strategy is 'no', and nothing is evaluated" in caplog.text


@pytest.mark.parametrize("metric", ["recall@1", "eval_recall", "zero_shot_top_1_accuracy"])
def test_a_metric_that_the_evaluation_does_not_give_is_named_with_those_it_gives(metric, tmp_path):
    args = arguments(tmp_path, metric_for_best_model=metric, eval_strategy="epoch")
    names = "text_retrieval_recall@1, .*image_retrieval_mean_rank, mean_recall"
    with pytest.raises(ValueError, match=f"metric_for_best_model is {metric}, but .* {names}: name one of"):
        check(ModelArguments(), args, eval_data="shapes")


@pytest.mark.parametrize("prefix", ["", "eval_"])
def test_a_metric_that_the_evaluation_gives_is_taken(prefix, tmp_path):
    for metric in ("mean_recall", "text_retrieval_recall@1", "image_retrieval_median_rank"):
        check(ModelArguments(), arguments(tmp_path, metric_for_best_model=prefix + metric, eval_strategy="epoch"))
    args = arguments(tmp_path, metric_for_best_model=f"{prefix}zero_shot_top_1_accuracy", eval_strategy="epoch")
    check(ModelArguments(), args, zero_shot_data="photos")
    args.eval_strategy = "no"  # of a run for which the recipe's metric is nothing
    check(ModelArguments(), args)


@pytest.mark.parametrize(
    "recipe", sorted(RECIPES.glob("[rv]*_*.yaml")) + sorted(RECIPES.glob("rn*.yaml")), ids=lambda r: r.stem
)
def test_a_recipe_can_keep_its_best_checkpoint(recipe, tmp_path):
    evaluating = ["--eval_data", "shapes", "--eval_strategy", "steps", "--load_best_model_at_end", "true"]
    command = [str(recipe), "--use_cpu", "--train_data", "shapes", "--output_dir", str(tmp_path), *evaluating]
    args = parse_recipe((ModelArguments, DataArguments, ClipTrainingArguments), None, command)[-1]
    assert args.save_steps % args.eval_steps == 0
