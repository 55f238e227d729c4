"""Times text features, from strings to embeddings: captions as they come, and a zero-shot classifier's weights.

OpenCLIP pads every text to 77 tokens, transformers each batch to its longest text; ours sort the texts by length.

    python scripts/benchmarks/text_features.py --num_captions 10000 --num_classes 1000
"""

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from measuring.captions import CAPTIONS_HELP, default_captions, read_captions
from measuring.reports import RESULTS, save
from measuring.rounds import compare, take_turns
from torch import Tensor
from torch.nn.functional import normalize

from clip_hf import ZeroShotClassifier
from clip_hf.evaluation.embedding import Embedder

BOUND = "Prompts that follow one another are alike in length: transformers pads little of them."
TEMPLATES = ["a photo of a {}.", "a blurry photo of a {}.", "a photo of many {}.", "a photo of the large {}."]
TEMPLATES += ["a photo of the small {}.", "a drawing of a {}.", "{} in the wild."]


class Encoders:
    """The three text towers with their tokenizers, from strings to unit vectors."""

    def __init__(self, batch_size: int) -> None:
        from measuring.models import build_models, build_tokenizers

        self.models, self.tokenizers, self.batch_size = build_models("ViT-B/32"), build_tokenizers(), batch_size

    def clip_hf(self, texts: list[str]) -> Tensor:
        """Returns our embeddings."""
        return Embedder(self.models.clip_hf, None, self.tokenizers.clip_hf, self.batch_size).embed_texts(texts)

    def open_clip(self, texts: list[str]) -> Tensor:
        """Returns OpenCLIP's."""
        ids = map(self.tokenizers.open_clip, self._batches(texts))
        return torch.cat([self.models.open_clip.encode_text(batch, normalize=True) for batch in ids])

    def transformers(self, texts: list[str]) -> Tensor:
        """Returns transformers', each batch padded to its longest text."""
        options = {"padding": True, "truncation": True, "return_tensors": "pt"}
        batches = (self.tokenizers.transformers(batch, **options) for batch in self._batches(texts))
        features = [self.models.transformers.get_text_features(**batch).pooler_output for batch in batches]
        return normalize(torch.cat(features), dim=-1)

    def class_weights(self, way: str, names: list[str]) -> Tensor:
        """Returns one unit vector a class; for the peers, from the embeddings of all prompts."""
        if way == "clip_hf":
            model, tokenizer = self.models.clip_hf, self.tokenizers.clip_hf
            return ZeroShotClassifier.from_class_names(model, tokenizer, names, TEMPLATES, self.batch_size).weights
        prompts = [template.format(name) for name in names for template in TEMPLATES]
        embeds = getattr(self, way)(prompts).unflatten(0, (len(names), len(TEMPLATES)))
        return normalize(embeds.mean(dim=1), dim=-1)

    def _batches(self, texts: list[str]) -> Iterator[list[str]]:
        return (texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size))


def measure(args: Namespace) -> list[dict[str, Any]]:
    """Returns the two cases."""
    encoders, captions = Encoders(args.batch_size), read_captions(args.captions, args.num_captions)
    words = sorted({word for caption in captions for word in caption.lower().split() if word.isalpha()})
    names = [f"{words[i % len(words)]} {words[7 * i % len(words)]} {i // len(words)}" for i in range(args.num_classes)]
    peers = ("clip_hf", "open_clip", "transformers")
    rows = {
        f"{len(captions):,} captions": {way: lambda w=way: getattr(encoders, w)(captions) for way in peers},
        f"{len(names):,} classes x 7 templates": {w: lambda w=w: encoders.class_weights(w, names) for w in peers},
    }
    cases = []
    for (title, ways), amount in zip(rows.items(), (len(captions), 7 * len(names)), strict=True):
        case = compare(title, take_turns(ways, args.repeats, title), amount, target=1.2)
        case["times_open_clip"] = round(case["per_second"]["clip_hf"] / case["per_second"]["open_clip"], 2)
        cases.append(case | ({"why": BOUND} if case["times_faster"] < case["target"] else {}))
    some = {way: getattr(encoders, way)(captions[:100]) for way in peers}
    cases[0]["largest_difference"] = max((embeds - some["open_clip"]).abs().max().item() for embeds in some.values())
    return cases


def main() -> None:
    """Measures, prints and saves."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--captions", type=Path, default=default_captions(), help=CAPTIONS_HELP)
    parser.add_argument("--num_captions", type=int, default=10_000, help="captions")
    parser.add_argument("--num_classes", type=int, default=1000, help="classes, of seven prompts each")
    parser.add_argument("--batch_size", type=int, default=64, help="texts at a time")
    parser.add_argument("--repeats", type=int, default=1, help="turns of each way, after one to warm up")
    parser.add_argument("--output", type=Path, default=RESULTS / "text_features.json", help="JSON file to write")
    args = parser.parse_args()
    with torch.no_grad():
        save(args.output, "Text features", "texts", args, measure(args))


if __name__ == "__main__":
    main()
