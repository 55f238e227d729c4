"""Training: transformers' Trainer with the loss of the global batch, on one processor or many accelerators."""

from clip_hf.training.trainer import ClipTrainer
from clip_hf.training.training_args import ClipTrainingArguments

__all__ = ["ClipTrainer", "ClipTrainingArguments"]
