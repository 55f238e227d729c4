"""Times text features, from strings to embeddings: captions as they come, and a zero-shot classifier's weights.

OpenCLIP pads every text to 77 tokens, transformers each batch to its longest text; ours sort the texts by length, and
on a CPU compute each distinct beginning of a batch's texts once. Each as it comes and compiled, on a CPU frozen, too,
which packs the weights for the kernels. All texts are embedded once, in parts, one a turn. OpenCLIP, to which all
texts are of one length, gets some of them, and its time is multiplied.

    python scripts/benchmarks/text_features.py --num_captions 10000 --num_classes 1000
"""

import copy
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from measuring.captions import class_names, read_captions
from measuring.floors import Floor
from measuring.options import add_captions, add_device, make_parser
from measuring.reports import save
from measuring.rounds import compare, largest_difference, take_turns
from torch import Tensor
from torch._inductor import config as compiler
from torch.nn.functional import normalize

from clip_hf import ZeroShotClassifier
from clip_hf.model.zero_shot_clip_hf import embed_texts

TEMPLATES = ["a photo of a {}.", "a blurry photo of a {}.", "a photo of many {}.", "a photo of the large {}."]
TEMPLATES += ["a photo of the small {}.", "a drawing of a {}.", "{} in the wild."]
AIMS: dict[str, float | None] = {"open_clip": 6.0, "transformers": 1.2}
WAYS = [f"{name}{compiled}" for name in ("clip_hf", "open_clip", "transformers") for compiled in ("", " compiled")]
CAUSES = {
    "cpu": "Captions are so short that their products reach less of the machine's rate than 77 tokens of padding do.",
    "cuda": "A GPU waits for kernels that are started one by one, however short or long the texts are.",
}


class Encoders:
    """The three text towers with their tokenizers, as they come and compiled, from strings to unit vectors."""

    def __init__(self, args: Namespace) -> None:
        from measuring.models import build_models, build_tokenizers

        models, self.tokenizers = build_models("ViT-B/32", args.device, args.dtype), build_tokenizers()
        self.batch_size, self.device = args.batch_size, args.device
        compiled = copy.deepcopy(models.clip_hf)
        compiled.text_model.compile(dynamic=True)
        self.models = {"clip_hf": models.clip_hf, "clip_hf compiled": compiled}
        encoders = {
            "open_clip": models.open_clip.encode_text,
            "transformers": models.transformers.get_text_features,
        }
        compiled_encoders = {f"{name} compiled": torch.compile(one, dynamic=True) for name, one in encoders.items()}
        self.encoders = encoders | compiled_encoders

    def embed(self, way: str, texts: list[str]) -> Tensor:
        """Returns the embeddings by a way of `WAYS`."""
        if way in self.models:
            return embed_texts(self.models[way], self.tokenizers.clip_hf, texts, self.batch_size)
        batches = [texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size)]
        encode = self.encoders[way]
        if way.startswith("open_clip"):
            features = [encode(self.tokenizers.open_clip(batch).to(self.device)) for batch in batches]
        else:
            options = {"padding": True, "truncation": True, "return_tensors": "pt"}
            tokens = (self.tokenizers.transformers(batch, **options).to(self.device) for batch in batches)
            features = [encode(**batch).pooler_output for batch in tokens]
        return normalize(torch.cat(features), dim=-1)

    def class_weights(self, way: str, names: list[str]) -> Tensor:
        """Returns one unit vector a class; for the peers, from the embeddings of all prompts."""
        if way in self.models:
            model, tokenizer = self.models[way], self.tokenizers.clip_hf
            return ZeroShotClassifier.from_class_names(model, tokenizer, names, TEMPLATES, self.batch_size).weights
        prompts = [template.format(name) for name in names for template in TEMPLATES]
        embeds = self.embed(way, prompts).unflatten(0, (len(names), len(TEMPLATES)))
        return normalize(embeds.mean(dim=1), dim=-1)


def measure(
    title: str, unit_size: int, texts: list[str], embed: Callable[[str, list[str]], Tensor], args: Namespace
) -> dict[str, Any]:
    """Returns one case.

    Args:
        title: of the case.
        unit_size: texts that the tower gets for one of `texts`.
        texts: captions, or names of classes.
        embed: gives the embeddings of some of these in a way.
        args: of the command line.
    """
    size, few = len(texts) // args.repeats, texts[: args.batch_size]
    difference = largest_difference({way: embed(way, few) for way in WAYS}, args.dtype)

    def in_parts(way: str) -> Callable[[], Tensor]:
        step = args.open_clip_part if way.startswith("open_clip") else 1
        parts = iter([few, *(texts[turn * size : (turn + 1) * size : step] for turn in range(args.repeats))])
        return lambda: embed(way, next(parts))

    floor = Floor.of(lambda: embed("clip_hf", texts[:size]), args.device, args.dtype)
    seconds = take_turns({way: in_parts(way) for way in WAYS} | {"floor": floor}, args.repeats, title)
    multiple = size / len(range(0, size, args.open_clip_part))
    seconds |= {way: [multiple * one for one in seconds[way]] for way in WAYS if way.startswith("open_clip")}
    seconds |= {"floor": [floor.seconds]}
    cause = CAUSES.get(torch.device(args.device).type, "")
    facts = {"floor": str(floor), "open_clip_multiplied_by": multiple, "largest_difference": difference}
    return compare(title, seconds, unit_size * size, AIMS, cause=cause, example=texts[len(texts) // 2], **facts)


def main() -> None:
    """Measures, prints and saves."""
    parser = make_parser(__file__, __doc__, repeats=5)
    add_captions(parser)
    parser.add_argument("--num_captions", type=int, default=10_000, help="captions")
    parser.add_argument("--num_classes", type=int, default=1000, help="classes, of seven prompts each")
    parser.add_argument("--batch_size", type=int, default=64, help="texts at a time")
    parser.add_argument("--open_clip_part", type=int, default=10, help="OpenCLIP gets one text of so many; 1 for all")
    add_device(parser)
    args = parser.parse_args()
    compiler.freezing = args.device == "cpu"
    captions = read_captions(args.captions, args.num_captions)
    names = class_names(captions, args.num_classes)
    with torch.no_grad():
        encoders = Encoders(args)
        cases = [
            measure(f"{len(captions):,} captions", 1, captions, encoders.embed, args),
            measure(f"{len(names):,} classes x 7 templates", 7, names, encoders.class_weights, args),
        ]
    save("Text features", "texts", args, cases)


if __name__ == "__main__":
    main()
