"""What a training log says beside transformers' loss, gradient norm and learning rate."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from clip_hf.distributed import all_gather, rank, world_size
from clip_hf.training.retrieval import recall


class TrainingLog:
    """Measures speed between two logs, and retrieval in the batch before a log."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._seconds = 0.0
        self._num_pairs = 0
        self._embeds: tuple[Tensor, Tensor, Tensor] | None = None

    def start(self) -> None:
        """Starts the clock, unless it runs."""
        if self._started is None:
            self._started = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock for what is not training."""
        self._stop()
        yield
        self._started = None

    def record(self, image_embeds: Tensor, text_embeds: Tensor, scale: Tensor) -> None:
        """Counts a batch and keeps its embeddings until the next one.

        Args:
            image_embeds: (B, D), this rank's.
            text_embeds: (B, D), this rank's.
            scale: (1,), linear.
        """
        self._embeds = image_embeds.detach(), text_embeds.detach(), scale.detach()
        self._num_pairs += world_size() * len(image_embeds)

    @torch.no_grad()
    def report(self) -> dict[str, float]:
        """Returns the entries of a log and starts anew; every rank must ask.

        Retrieval is that of the last batch, among the pairs of all ranks: `text_retrieval_accuracy` is the share of
        images whose own text is the most similar one, `image_retrieval_accuracy` that of texts. `pairs_per_second` is
        of all ranks, since the last report.
        """
        if self._embeds is None:
            return {}
        images, texts, scale = self._embeds
        first_match = rank() * len(images)
        (found_texts,) = recall(images, all_gather(texts), [1], first_match)
        (found_images,) = recall(texts, all_gather(images), [1], first_match)
        shares = torch.tensor([[found_texts, found_images]], device=images.device)
        text_accuracy, image_accuracy = all_gather(shares).mean(dim=0).tolist()
        self._stop()
        pairs_per_second = self._num_pairs / self._seconds
        self._seconds, self._num_pairs, self._embeds = 0.0, 0, None
        return {
            "scale": scale.item(),
            "text_retrieval_accuracy": text_accuracy,
            "image_retrieval_accuracy": image_accuracy,
            "pairs_per_second": pairs_per_second,
        }

    def _stop(self) -> None:
        if self._started is not None:
            self._seconds += time.perf_counter() - self._started
            self._started = None
