"""Recall and ranks of image-text retrieval, as a module of `evaluate`: `evaluate.load(<this file>)`."""

import datasets
import evaluate
import torch

from clip_hf.evaluation.retrieval import rank_matches, retrieval_metrics

DESCRIPTION = """
Recall at k, median and mean rank of texts found by images and of images found by texts. An image may have any number
of captions. Equally similar candidates count as in random order: a model that gives all pairs one similarity has the
recall of chance. Similarities that float32 cannot tell apart are compared in float64.
"""
INPUTS = """
Args:
    image_embeds: an embedding (D,) of unit length for each image.
    text_embeds: for each image, the embeddings (captions, D) of its captions, one at least, of unit length.
    ks: numbers of candidates to look at, 1, 5 and 10 by default.

Returns:
    text_retrieval_recall@k and image_retrieval_recall@k for each k, and of both directions median_rank and mean_rank;
    mean_recall, the mean of all recalls.
"""
CITATION = """
@inproceedings{radford2021learning,
    title = {Learning Transferable Visual Models From Natural Language Supervision},
    author = {Radford, Alec and Kim, Jong Wook and Hallacy, Chris and others},
    booktitle = {International Conference on Machine Learning},
    year = {2021}
}
"""


class ImageTextRetrieval(evaluate.Metric):
    """Retrieval in both directions; `add_batch` takes any number of images at a time."""

    def _info(self) -> evaluate.MetricInfo:
        vector = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"image_embeds": vector, "text_embeds": datasets.Sequence(vector)}),
        )

    def _compute(self, image_embeds: list, text_embeds: list, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
        counts = torch.tensor([len(captions) for captions in text_embeds])
        texts = torch.tensor([caption for captions in text_embeds for caption in captions])
        image_of_text = torch.arange(len(counts)).repeat_interleave(counts)
        # One process computes, whatever their number: `evaluate` has put together what they added.
        ranks = rank_matches(torch.tensor(image_embeds), texts, image_of_text, on_all_processes=False)
        return retrieval_metrics(*ranks, ks)
