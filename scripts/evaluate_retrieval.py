"""Finds texts by images and images by texts: recall at 1, 5 and 10, median and mean rank, and a sheet of answers.

An image may have any number of captions. Equally similar answers count as in random order.

python scripts/evaluate_retrieval.py --model outputs/model --data photos --output_dir outputs/retrieval
torchrun --nproc_per_node 8 scripts/evaluate_retrieval.py --model me/my-clip --data me/photos:test --output_dir out
"""

from dataclasses import dataclass, field

import torch

import clip_hf  # noqa: F401  registers the model classes
from clip_hf.data.columns import Columns
from clip_hf.data.sources import open_source
from clip_hf.evaluation.figures import draw_answers
from clip_hf.evaluation.retrieval import RECALL_KS, rank_matches, retrieval_metrics
from clip_hf.evaluation.setup import (
    EvaluationArguments,
    EvenlySpread,
    describe_images,
    is_writer,
    open_features,
    run,
    write_results,
)
from clip_hf.model_card.evaluations import RETRIEVAL


@dataclass
class RetrievalArguments(EvaluationArguments):
    """And of the captions and the sheet."""

    text_column: str | None = field(default=None, metadata={"help": "Column of captions; by default a usual name."})
    num_queries: int = field(default=6, metadata={"help": "Queries of each kind on the sheet."})


def print_table(metrics: dict[str, float]) -> None:
    """Prints the metrics of both directions."""
    names = [*(f"recall@{k}" for k in RECALL_KS), "median_rank", "mean_rank"]
    print(f"{'':18}" + "".join(f"{name.replace('_', ' '):>13}" for name in names))
    for modality, what in {"text": "texts by images", "image": "images by texts"}.items():
        values = {name: metrics[f"{modality}_retrieval_{name}"] for name in names}
        cells = [f"{value:>13.2%}" if "recall" in name else f"{value:>13,.1f}" for name, value in values.items()]
        print(f"{what:18}" + "".join(cells))


def main(args: RetrievalArguments) -> None:
    """Embeds, ranks, prints and draws."""
    columns = Columns(args.image_column, args.text_column, args.id_column)
    samples = EvenlySpread(open_source(args.data, columns, split="evaluation"), args.limit)
    cache = open_features(args)
    images = cache.embed_images(samples).with_texts()
    texts = cache.embed_texts([text for texts in images.texts for text in texts])
    counts = torch.tensor([len(texts) for texts in images.texts])
    metrics = retrieval_metrics(
        *rank_matches(images.features, texts, torch.arange(len(counts)).repeat_interleave(counts))
    )
    if is_writer():
        args.output_dir.mkdir(parents=True, exist_ok=True)
        write_results(args, RETRIEVAL, cache, images, {"num_texts": len(texts), "metrics": metrics})
        print(f"{args.data}: {describe_images(images)}; {len(texts):,} texts\n")
        print_table(metrics)
        draw_answers(args.output_dir / "queries.png", samples, images, texts, args.num_queries)
        print(f"\n{args.output_dir}: results.json, queries.png")


if __name__ == "__main__":
    run(main, RetrievalArguments, __doc__)
