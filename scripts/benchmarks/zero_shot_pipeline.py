"""Times one image against many labels: our zero-shot pipeline, and transformers' stock one on its CLIPModel.

A first call meets labels that are new to our pipeline, a later one labels that it has seen; to the stock one, all
calls are alike. Our images are resized with torch (`backend="torch"`), the others as transformers chooses. The weights
are random, and equal in both.

    python scripts/benchmarks/zero_shot_pipeline.py --architecture ViT-B/16 --num_labels 1000
"""

from argparse import Namespace
from typing import Any

import torch
from measuring.captions import class_names, read_captions
from measuring.floors import Floor
from measuring.options import add_captions, add_device, make_parser
from measuring.reports import save
from measuring.rounds import compare, largest_difference, take_turns
from PIL import Image
from transformers import CLIPImageProcessor, Pipeline, ZeroShotImageClassificationPipeline, pipeline

from clip_hf import ClipHfImageProcessorTorch, ClipHfZeroShotPipeline
from clip_hf.model.zero_shot_pipeline_clip_hf import TASK

TEMPLATE = "This is a photo of {}."


def build_pipelines(args: Namespace) -> tuple[Pipeline, Pipeline]:
    """Returns our pipeline and the stock one, of the same random weights."""
    from measuring.models import build_models, build_tokenizers

    models, tokenizers = build_models(args.architecture, args.device, args.dtype), build_tokenizers()
    size = models.clip_hf.config.vision_config.image_size
    sizes = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    ours = pipeline(
        TASK,
        pipeline_class=ClipHfZeroShotPipeline,
        model=models.clip_hf,
        tokenizer=tokenizers.clip_hf,
        image_processor=ClipHfImageProcessorTorch(size=size, crop_size=size),
        device=args.device,
    )
    stock = pipeline(
        TASK,
        pipeline_class=ZeroShotImageClassificationPipeline,
        model=models.transformers,
        tokenizer=tokenizers.transformers,
        image_processor=CLIPImageProcessor(**sizes),
        device=args.device,
    )
    return ours, stock


def measure(args: Namespace) -> list[dict[str, Any]]:
    """Returns two cases: calls with new labels, and with labels seen before."""
    labels = class_names(read_captions(args.captions, 10_000), args.num_labels)
    ours, stock = build_pipelines(args)
    image = Image.effect_noise((640, 480), 100).convert("RGB")

    def call(pipe: Pipeline) -> torch.Tensor:
        answer = {
            one["label"]: one["score"] for one in pipe(image, candidate_labels=labels, hypothesis_template=TEMPLATE)
        }
        return torch.tensor([answer[label] for label in labels])  # on the CPU, so all is done

    def first_call() -> None:
        ours.forget_labels()
        call(ours)

    facts = {
        "largest_difference_of_scores": largest_difference({"ours": call(ours), "stock": call(stock)}, args.dtype)
    }
    floors = {
        "first": Floor.of(first_call, args.device, args.dtype),
        "later": Floor.of(lambda: call(ours), args.device, args.dtype),
    }
    ways = {"clip_hf, first call": first_call, "clip_hf": lambda: call(ours), "transformers": lambda: call(stock)}
    seconds = take_turns(ways | floors, args.repeats, args.architecture)
    cases = []
    for kind, ours_seconds, aim in (
        ("first", seconds["clip_hf, first call"], 1.0),
        ("later", seconds["clip_hf"], 100.0 if args.device == "cpu" else 20.0),
    ):
        title = f"one image, {len(labels):,} labels, {args.architecture}, {kind} call"
        times = {"clip_hf": ours_seconds, "transformers": seconds["transformers"], "floor": [floors[kind].seconds]}
        cases.append(compare(title, times, 1, {"transformers": aim}, floor=str(floors[kind]), **facts))
    return cases


def main() -> None:
    """Measures, prints and saves."""
    parser = make_parser(__file__, __doc__, repeats=5)
    parser.add_argument("--architecture", default="ViT-B/32", help="the model's: a ViT")
    parser.add_argument("--num_labels", type=int, default=1000, help="labels that the image is set against")
    add_captions(parser)
    add_device(parser)
    args = parser.parse_args()
    save("Zero-shot pipeline", "images", args, measure(args))


if __name__ == "__main__":
    main()
