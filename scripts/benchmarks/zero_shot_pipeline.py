"""Times one image against many labels: our zero-shot pipeline, and transformers' stock one on its CLIPModel.

A first call meets labels that are new to our pipeline, a later one labels that it has seen; to the stock one, all
calls are alike. Our images are resized with torch (`backend="torch"`), the others as transformers chooses. The weights
are random, and equal in both. Each as it comes and compiled: of ours the image tower, on a GPU into CUDA graphs; on a
CPU also frozen, which packs the weights for the kernels.

    python scripts/benchmarks/zero_shot_pipeline.py --architecture ViT-B/16 --num_labels 1000
"""

import copy
from argparse import Namespace
from typing import Any

import torch
from measuring.captions import class_names, read_captions
from measuring.floors import Floor
from measuring.options import add_captions, add_device, make_parser
from measuring.reports import save
from measuring.rounds import compare, largest_difference, take_turns
from PIL import Image
from torch._inductor import config as compiler
from transformers import CLIPImageProcessor, Pipeline, ZeroShotImageClassificationPipeline, pipeline

from clip_hf import ClipHfImageProcessorTorch, ClipHfZeroShotPipeline
from clip_hf.model.zero_shot_pipeline_clip_hf import TASK

TEMPLATE = "This is a photo of {}."


def build_pipelines(args: Namespace) -> dict[str, Pipeline]:
    """Returns our pipeline and the stock one, of the same random weights, as they come and compiled."""
    from measuring.models import build_models, build_tokenizers

    models, tokenizers = build_models(args.architecture, args.device, args.dtype), build_tokenizers()
    size = models.clip_hf.config.vision_config.image_size
    sizes = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    compiled = copy.deepcopy(models.clip_hf), copy.deepcopy(models.transformers)
    compiled[0].vision_model.compile(mode="default" if args.device == "cpu" else "reduce-overhead")
    compiled[1].compile()
    options = {
        "clip_hf": {
            "pipeline_class": ClipHfZeroShotPipeline,
            "tokenizer": tokenizers.clip_hf,
            "image_processor": ClipHfImageProcessorTorch(size=size, crop_size=size),
        },
        "transformers": {
            "pipeline_class": ZeroShotImageClassificationPipeline,
            "tokenizer": tokenizers.transformers,
            "image_processor": CLIPImageProcessor(**sizes),
        },
    }
    built = {"clip_hf": models.clip_hf, "transformers": models.transformers}
    built |= {f"{name} compiled": model for name, model in zip(options, compiled, strict=True)}
    return {
        name: pipeline(TASK, model=model, device=args.device, **options[name.split()[0]])
        for name, model in built.items()
    }


def measure(args: Namespace) -> list[dict[str, Any]]:
    """Returns two cases: calls with new labels, and with labels seen before."""
    labels = class_names(read_captions(args.captions, 10_000), args.num_labels)
    pipelines = build_pipelines(args)
    image = Image.effect_noise((640, 480), 100).convert("RGB")

    def call(name: str) -> torch.Tensor:
        answers = pipelines[name](image, candidate_labels=labels, hypothesis_template=TEMPLATE)
        scores = {answer["label"]: answer["score"] for answer in answers}
        return torch.tensor([scores[label] for label in labels])  # on the CPU, so all is done

    def first_call() -> None:
        pipelines["clip_hf"].forget_labels()
        call("clip_hf")

    difference = largest_difference({name: call(name) for name in pipelines}, args.dtype)
    floors = {
        "first": Floor.of(first_call, args.device, args.dtype),
        "later": Floor.of(lambda: call("clip_hf"), args.device, args.dtype),
    }
    ways = {"first call": first_call} | {name: lambda name=name: call(name) for name in pipelines}
    seconds = take_turns(ways | floors, args.repeats, args.architecture)
    later = {name: seconds[name] for name in pipelines}
    peers = {name: some for name, some in later.items() if name.startswith("transformers")}
    cases = []
    for kind, times, aim in (
        ("first", {"clip_hf": seconds["first call"]} | peers, 1.0),
        ("later", later, 100.0 if args.device == "cpu" else 20.0),
    ):
        title = f"one image, {len(labels):,} labels, {args.architecture}, {kind} call"
        facts = {"floor": str(floors[kind]), "largest_difference_of_scores": difference}
        times_and_floor = times | {"floor": [floors[kind].seconds]}
        cases.append(compare(title, times_and_floor, 1, {"transformers": aim}, **facts))
    return cases


def main() -> None:
    """Measures, prints and saves."""
    parser = make_parser(__file__, __doc__, repeats=5)
    parser.add_argument("--architecture", default="ViT-B/32", help="the model's: a ViT")
    parser.add_argument("--num_labels", type=int, default=1000, help="labels that the image is set against")
    add_captions(parser)
    add_device(parser)
    args = parser.parse_args()
    compiler.freezing = args.device == "cpu"
    save("Zero-shot pipeline", "images", args, measure(args))


if __name__ == "__main__":
    main()
