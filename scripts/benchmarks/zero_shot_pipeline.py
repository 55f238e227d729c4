"""Times one image against many labels: our zero-shot pipeline, and transformers' stock one on its CLIPModel.

A first call meets labels that are new to our pipeline, a later one labels that it has seen; to the stock one, all
calls are alike. Our images are resized with torch (`backend="torch"`), the others as transformers chooses. The weights
are random, and equal in both. Each as it comes and compiled, of ours the image tower, for later calls: on a GPU into
CUDA graphs, and on a CPU frozen, which packs the weights for the kernels, and for batches of any size, one image
included, as torch's kernels for these are the faster ones.

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
from torch.fx.experimental import _config as shapes
from transformers import CLIPImageProcessor, Pipeline, ZeroShotImageClassificationPipeline, pipeline

from clip_hf import ClipHfImageProcessorTorch, ClipHfZeroShotPipeline
from clip_hf.model.zero_shot_pipeline_clip_hf import TASK

TEMPLATE = "This is a photo of {}."
CAUSES = {
    "cpu": "A call is one image's pass, of which the compiled products are most; they read all weights from memory, "
    "where the floor's find theirs in a cache.",
    "cuda": "One image leaves a GPU idle: a call waits for its reading, and for kernels that are started one by one.",
}


def build_pipelines(args: Namespace) -> dict[str, Pipeline]:
    """Returns our pipeline and the stock one, of the same random weights, as they come and compiled."""
    from measuring.models import build_models, build_tokenizers

    models, tokenizers = build_models(args.architecture, args.device, args.dtype), build_tokenizers()
    size = models.clip_hf.config.vision_config.image_size
    sizes = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    ours, stock = copy.deepcopy(models.clip_hf), copy.deepcopy(models.transformers)
    options = {"dynamic": True} if args.device == "cpu" else {"mode": "reduce-overhead"}  # that is, CUDA graphs
    ours.vision_model.compile(**options)
    stock.compile(**options)
    our_parts = {
        "pipeline_class": ClipHfZeroShotPipeline,
        "tokenizer": tokenizers.clip_hf,
        "image_processor": ClipHfImageProcessorTorch(size=size, crop_size=size),
    }
    stock_parts = {
        "pipeline_class": ZeroShotImageClassificationPipeline,
        "tokenizer": tokenizers.transformers,
        "image_processor": CLIPImageProcessor(**sizes),
    }
    return {
        "clip_hf": pipeline(TASK, model=models.clip_hf, device=args.device, **our_parts),
        "clip_hf compiled": pipeline(TASK, model=ours, device=args.device, **our_parts),
        "transformers": pipeline(TASK, model=models.transformers, device=args.device, **stock_parts),
        "transformers compiled": pipeline(TASK, model=stock, device=args.device, **stock_parts),
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
    peers = {name: later[name] for name in ("transformers", "transformers compiled")}
    first = {"clip_hf": seconds["first call"]} | peers
    cases = []
    for kind, times, aim in (("first", first, 1.0), ("later", later, 100.0 if args.device == "cpu" else 20.0)):
        title = f"one image, {len(labels):,} labels, {args.architecture}, {kind} call"
        facts = {"floor": str(floors[kind]), "largest_difference_of_scores": difference}
        times["floor"] = [floors[kind].seconds]
        facts["cause"] = CAUSES.get(torch.device(args.device).type, "")
        cases.append(compare(title, times, 1, {"transformers": aim}, **facts))
    return cases


def main() -> None:
    """Measures, prints and saves."""
    parser = make_parser(__file__, __doc__, repeats=5)
    parser.add_argument("--architecture", default="ViT-B/32", help="the model's: a ViT")
    parser.add_argument("--num_labels", type=int, default=1000, help="labels that the image is set against")
    add_captions(parser)
    add_device(parser)
    args = parser.parse_args()
    compiler.freezing = shapes.backed_size_oblivious = args.device == "cpu"
    save("Zero-shot pipeline", "images", args, measure(args))


if __name__ == "__main__":
    main()
