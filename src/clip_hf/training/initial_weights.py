"""The same initial weights in every engine."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from clip_hf.training.training_args import ClipTrainingArguments


@contextmanager
def whole_on_every_process(args: ClipTrainingArguments) -> Iterator[None]:
    """Makes the models constructed inside whole on every process, under ZeRO-3 too, which divides them later.

    ZeRO-3 divides a model while it is made, and draws its weights in another order than every other engine: a seed
    would not give the same model. The largest released model takes 2.5 GB of host memory in each process for a moment.

    Args:
        args: of the training that the model is for.
    """
    if not args.deepspeed:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(args.hf_deepspeed_config)
