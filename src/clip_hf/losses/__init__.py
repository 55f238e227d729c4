"""The training loss: exact over all ranks, in memory that does not grow with the square of the batch."""

from clip_hf.losses.clip import clip_loss
from clip_hf.model.contrastive_loss_clip_hf import contrastive_loss

__all__ = ["clip_loss", "contrastive_loss"]
