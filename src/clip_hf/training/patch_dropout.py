"""Images of which a ViT sees a part: FLIP (Li et al. 2023, arXiv 2212.00794), with an unmasked end.

Each image loses its own random patches. They are drawn from torch's generator, whose state the gradient cache replays
and a checkpoint keeps. As with any dropout, the draws depend on how the batch is divided among processes and chunks.
"""

from typing import Any, cast

from transformers import TrainerCallback, TrainerControl, TrainerState

from clip_hf.model.modeling_clip_hf import ClipHfModel
from clip_hf.model.modeling_clip_hf_vit import ClipHfViTModel
from clip_hf.training.training_args import ClipTrainingArguments


class PatchDropout(TrainerCallback):
    """Tells the image tower, step by step, which share of an image's patches to leave out.

    Args:
        model: with a ViT, if any patch is to be left out.
    """

    def __init__(self, model: ClipHfModel) -> None:
        self._model = model

    def on_step_begin(
        self, args: ClipTrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Sets the share of this step, whichever step the run was resumed at."""
        if args.patch_dropout:
            is_over = state.global_step >= (1 - args.unmasked_share) * state.max_steps
            tower = cast(ClipHfViTModel, self._model.vision_model)
            tower.embeddings.patch_dropout = 0.0 if is_over else args.patch_dropout
