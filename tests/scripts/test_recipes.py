"""Each recipe of a released model is the paper's training of it."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments, get_scheduler

from clip_hf import ClipHfConfig, ClipHfModel
from clip_hf.model.architectures_clip_hf import ARCHITECTURES
from clip_hf.training import ClipTrainer, ClipTrainingArguments
from clip_hf.training.parameter_groups import decay_parameter_names
from clip_hf.training.planning import Hardware, plan
from clip_hf.training.recipe import parse_recipe
from scripts import demo
from scripts.plan_run import read_training
from tests.tiny_models import tiny_model
from tests.tiny_pairs import TinyPairs, collate

RECIPES = Path(__file__).parents[2] / "scripts" / "recipes"
# Peak learning rate (CLIP paper, tables 18 to 20) and number of parameters (as released).
PUBLISHED = {
    "RN50": (5e-4, 102_007_137),
    "RN101": (5e-4, 119_688_033),
    "RN50x4": (5e-4, 178_300_601),
    "RN50x16": (4e-4, 290_979_217),
    "RN50x64": (3.6e-4, 623_258_305),
    "ViT-B/32": (5e-4, 151_277_313),
    "ViT-B/16": (5e-4, 149_620_737),
    "ViT-L/14": (4e-4, 427_616_513),
    "ViT-L/14@336px": (2e-5, 427_944_193),
}
NUM_PAIRS = 400_000_000


def file_of(architecture):
    name = architecture.lower().replace("vit-", "vit_").replace("/", "_").replace("@", "_")
    return str(RECIPES / f"{name}.yaml")


@pytest.fixture(scope="module")
def train_script():
    spec = importlib.util.spec_from_file_location("train_script", RECIPES.parent / "train.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script  # dataclasses look their module up
    spec.loader.exec_module(script)
    return script


def read(train_script, recipe, *options):
    classes = (train_script.ModelArguments, train_script.DataArguments, ClipTrainingArguments)
    return parse_recipe(classes, None, [recipe, "--use_cpu", *options])


def test_there_is_a_recipe_for_each_released_model():
    assert list(PUBLISHED) == list(ARCHITECTURES)
    assert all(Path(file_of(architecture)).is_file() for architecture in PUBLISHED)


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_recipe_is_the_papers(architecture, train_script):
    model_args, _, args = read(train_script, file_of(architecture), "--train_data", "pairs")
    learning_rate, num_parameters = PUBLISHED[architecture]
    if architecture == "ViT-L/14@336px":
        assert (model_args.model, model_args.image_size, args.num_train_epochs) == ("outputs/vit_l_14", 336, 1)
    else:
        assert (model_args.architecture, args.num_train_epochs) == (architecture, 32)
    with torch.device("meta"):
        model = ClipHfModel(ClipHfConfig.from_architecture(architecture))
    assert model.num_parameters() == num_parameters

    optimizer, options = ClipTrainer.get_optimizer_cls_and_kwargs(args, model)
    is_vit = architecture.startswith("ViT")
    assert optimizer is torch.optim.AdamW
    assert options["lr"] == learning_rate
    assert options["betas"] == ((0.9, 0.98) if is_vit else (0.9, 0.999))
    assert options["eps"] == (1e-6 if is_vit else 1e-8)
    assert args.weight_decay == 0.2 and not args.max_grad_norm, "the paper bounds no gradients"
    decayed = set(decay_parameter_names(model))
    for name, parameter in model.named_parameters():
        is_gain_or_bias = name.endswith("bias") or "norm" in name or parameter.ndim < 2
        assert (name in decayed) != is_gain_or_bias, name

    assert (args.lr_scheduler_type, args.warmup_steps, args.bf16) == ("cosine", 2000, True)
    assert args.per_device_train_batch_size == args.global_batch_size == 32_768
    assert args.gradient_accumulation_steps == 1 and 32_768 % args.grad_cache_chunk_size == 0
    num_steps = args.num_train_epochs * (NUM_PAIRS // 32_768)
    assert args.get_warmup_steps(num_steps) == 2000
    assert args.save_total_limit == 2, "a run of the largest would else keep terabytes"
    eight = Hardware(8, 400e12, 0.4, 25e9)
    planned = plan(read_training(file_of(architecture), 8, 16, architecture), eight, "zero1")
    assert args.save_steps * 32_768 / planned.pairs_per_second < 2 * 60 * 60


@pytest.mark.parametrize("num_processes", [1, 8, 256])
@pytest.mark.parametrize("architecture", PUBLISHED)
def test_the_batch_is_the_papers_on_any_number_of_processes(architecture, num_processes, train_script, monkeypatch):
    _, _, args = read(train_script, file_of(architecture), "--train_data", "pairs")
    monkeypatch.setenv("WORLD_SIZE", str(num_processes))
    args.per_device_train_batch_size = TrainingArguments.per_device_train_batch_size
    args._share_global_batch()  # as it does where there are so many, which accelerate would look for
    share = args.per_device_train_batch_size
    assert share * num_processes * args.gradient_accumulation_steps == 32_768
    assert share % min(share, args.grad_cache_chunk_size) == 0, "each chunk is full"


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_the_schedule_rises_to_the_peak_and_ends_at_zero(architecture, train_script):
    _, _, args = read(train_script, file_of(architecture), "--train_data", "pairs")
    peak, _ = PUBLISHED[architecture]
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=args.learning_rate)
    schedule = get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(10_000), 10_000)
    rates = []
    for _ in range(10_000):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == 0 and rates[1000] == pytest.approx(peak / 2) and max(rates) == rates[2000] == peak
    assert rates[6000] == pytest.approx(peak / 2) and schedule.get_last_lr()[0] == pytest.approx(0, abs=1e-12)


def test_the_demo_trains_what_the_recipe_of_shapes_does(train_script, tmp_path, monkeypatch):
    class Trained(Exception):
        pass

    def stop(*objects, **options):
        raise Trained(*objects[:2])

    monkeypatch.setattr(demo, "ClipTrainer", stop)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--output_dir", str(tmp_path)])
    with pytest.raises(Trained) as caught:
        demo.main()
    model, args = caught.value.args
    model_args, _, expected = read(train_script, str(RECIPES / "shapes.yaml"))
    config = model_args.build_config(vocab_size=model.config.text_config.vocab_size)
    assert model.config.to_diff_dict() == config.to_diff_dict()
    assert model.config.text_config.vocab_size <= model_args.vocab_size
    for name in ("max_steps", "learning_rate", "warmup_steps", "per_device_train_batch_size", "lr_scheduler_type"):
        assert getattr(args, name) == getattr(expected, name), name


@pytest.mark.parametrize(
    ("name", "batch_size", "millions"),
    [("shapes", 60, 0.44), ("flickr8k", 64, 2.70), ("flickr8k_and_emoji", 64, 5.67)],
)
def test_small_recipes_train_small_models(name, batch_size, millions, train_script):
    options = ("--train_data", "pairs", "--eval_data", "others")
    model_args, _, args = read(train_script, str(RECIPES / f"{name}.yaml"), *options)
    assert args.learning_rate >= 1e-3 and args.warmup_steps < 1 and args.global_batch_size == batch_size
    with torch.device("meta"):
        model = ClipHfModel(model_args.build_config(vocab_size=model_args.vocab_size))
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.01)


def test_the_recipe_for_one_gpu_fits_24_gb(train_script):
    recipe = str(RECIPES / "one_gpu.yaml")
    _, data_args, args = read(train_script, recipe, "--train_data", "pairs", "--eval_data", "others")
    assert args.bf16 and args.warmup_steps < 1 and data_args.crop_scale == [0.5, 1.0]
    one = plan(read_training(recipe, 1, 16), Hardware(1, 150e12, 0.4, 25e9), "ddp")
    assert sum(one.memory.values()) <= 0.9 * 24e9
    assert 10 * 10_000_000 / one.pairs_per_second == pytest.approx(86_400, rel=0.3)


@pytest.mark.parametrize(("architecture", "tower"), [("RN50", "resnet"), ("ViT-B/32", "vit")])
def test_a_recipes_optimizer_decays_what_the_paper_decays(architecture, tower, train_script, tmp_path):
    options = ("--train_data", "pairs", "--output_dir", str(tmp_path), "--bf16", "false")
    model, (_, _, args) = tiny_model(tower), read(train_script, file_of(architecture), *options)
    optimizer = ClipTrainer(model, args, collate, TinyPairs(model.config, 4)).create_optimizer()
    decayed = set(decay_parameter_names(model))
    expected = {parameter: 0.2 if name in decayed else 0.0 for name, parameter in model.named_parameters()}
    assert {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]} == expected
    adam = {"lr": 5e-4, "betas": (0.9, 0.999 if tower == "resnet" else 0.98)}
    adam["eps"] = 1e-8 if tower == "resnet" else 1e-6
    assert all(adam.items() <= group.items() for group in optimizer.param_groups)


def test_data_must_be_named(train_script, capsys):
    with pytest.raises(SystemExit):
        read(train_script, file_of("RN50"))
    assert "--train_data" in capsys.readouterr().err
