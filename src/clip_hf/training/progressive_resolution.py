"""Images that grow in the course of a run, and end at full size (RECLIP, Li et al. 2023, arXiv 2304.06028).

Images are made smaller on the device, so that workers, caches and the place in the data know nothing of it, and the
tower interpolates its positions. What is evaluated and saved is the model of the full size.

Shapes: B images, C channels, H and W pixels.
"""

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from clip_hf.training.training_args import ClipTrainingArguments

NUM_AT_A_TIME = 256  # images made smaller, where there are no chunks


class ProgressiveResolution(TrainerCallback):
    """Tells, step by step, at which size images are seen."""

    def __init__(self) -> None:
        self._size: int | None = None
        self._num_at_a_time = NUM_AT_A_TIME

    def on_step_begin(
        self, args: ClipTrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Chooses the size of this step, whichever step the run was resumed at."""
        sizes = args.smaller_image_sizes or []
        index = int(state.global_step * len(sizes) / ((1 - args.full_size_share) * state.max_steps))
        self._size = sizes[index] if index < len(sizes) else None
        self._num_at_a_time = args.grad_cache_chunk_size or NUM_AT_A_TIME

    def on_train_end(
        self, args: ClipTrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Leaves images as they are."""
        self._size = None

    def resized(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Returns a training batch as this step sees it.

        Args:
            inputs: with `pixel_values` (B, C, H, W), uint8 raw or floating point normalised.
        """
        if self._size is None:
            return inputs
        pixels = inputs["pixel_values"]
        smaller = pixels.new_empty(*pixels.shape[:2], self._size, self._size)
        # A batch of which the towers hold a chunk would not fit as floating-point numbers.
        for some, resized in zip(pixels.split(self._num_at_a_time), smaller.split(self._num_at_a_time), strict=True):
            values = nn.functional.interpolate(some.float(), self._size, mode="bilinear", antialias=True)
            resized.copy_(values if pixels.is_floating_point() else values.round())
        return inputs | {"pixel_values": smaller, "interpolate_pos_encoding": True}
