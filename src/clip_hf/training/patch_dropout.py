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
        args: the share, and when it ends.
        model: the model.

    Raises:
        ValueError: the image tower is no ViT.
    """

    def __init__(self, args: ClipTrainingArguments, model: ClipHfModel) -> None:
        self._model = model
        kind = model.config.vision_config.model_type
        if args.patch_dropout and kind != "clip_hf_vit":
            raise ValueError(
                f"patch_dropout is {args.patch_dropout}, but the image tower is a '{kind}', which has no patches to "
                "leave out: leave the option out, or train a ViT"
            )

    def on_step_begin(
        self, args: ClipTrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Sets the share of this step, whichever step the run was resumed at."""
        if args.patch_dropout:
            is_over = state.global_step >= (1 - args.unmasked_share) * state.max_steps
            tower = cast(ClipHfViTModel, self._model.vision_model)
            tower.embeddings.patch_dropout = 0.0 if is_over else args.patch_dropout
