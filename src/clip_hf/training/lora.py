"""Fine-tuning of a few numbers beside weights that stay (LoRA, Hu et al. 2021, arXiv 2106.09685), by the peft library.

Every linear layer W of the Transformer blocks becomes W + 2 B A, with A and B of rank r, and only they are trained. In
the end there are two results: the adapter, to be loaded beside the weights that it was trained on, and the weights
with the adapter merged into them, a checkpoint as any other.
"""

import os
from importlib.util import find_spec
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_NAME

from clip_hf.model.configuration_clip_hf import ClipHfConfig
from clip_hf.model.modeling_clip_hf import ClipHfModel
from clip_hf.training.training_args import WHOLE_RUN, ClipTrainingArguments

FOLDER = "adapter"
TARGETS = r"(vision_model|text_model)\.layers\..*(qkv|out_proj|fc1|fc2)"


class Adapter:
    """The trained part of a model of which the rest stays as it is.

    Args:
        model: gets the adapter's layers in place.
        rank: r.
        args: of the training.

    Raises:
        ImportError: peft is not installed.
        ValueError: the rank is below 1, or an option cannot go with an adapter.
    """

    def __init__(self, model: ClipHfModel, rank: int, args: ClipTrainingArguments) -> None:
        check_adapter(rank, args, model.config)
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS)
        self._peft_model = get_peft_model(model, config)

    def save_and_merge(self, output_dir: str, should_save: bool) -> None:
        """Saves the adapter in the folder `adapter` of a run, and merges it into the model.

        Args:
            output_dir: of the run.
            should_save: whether this process is the one that writes.
        """
        if should_save:
            self._peft_model.save_pretrained(os.path.join(output_dir, FOLDER))
        self._peft_model.merge_and_unload()


def rank_in(checkpoint: str | os.PathLike[str]) -> int | None:
    """Returns the rank of the adapter that a checkpoint amid a training has beside the weights, if it has one.

    Args:
        checkpoint: a folder; what is none, or has no file of weights that can be read, has no adapter.
    """
    try:
        with safe_open(Path(checkpoint, SAFE_WEIGHTS_NAME), "pt") as weights:
            ranks = [weights.get_slice(name).get_shape()[0] for name in weights.keys() if ".lora_A." in name]
    except (OSError, SafetensorError):
        return None
    return ranks[0] if ranks else None


def check_adapter(rank: int, args: ClipTrainingArguments, config: ClipHfConfig) -> None:
    """Checks what an adapter is to be trained with.

    Args:
        rank: r.
        args: of the training.
        config: of the model.

    Raises:
        ImportError: peft is not installed.
        ValueError: the rank is below 1, or an option cannot go with an adapter.
    """
    if rank < 1:
        raise ValueError(f"lora_rank is {rank}, but must be at least 1, or not given")
    if find_spec("peft") is None:
        raise ImportError("lora_rank needs the peft library: `pip install 'clip_hf[lora]'`")
    if config.vision_config.model_type != "clip_hf_vit" and args.image_locked_steps != WHOLE_RUN:
        raise ValueError(
            f"lora_rank is {rank}, but the image tower is a ResNet, whose batch norm statistics would move and are in "
            f"no adapter: hold it with --image_locked_steps {WHOLE_RUN}, or train it without lora_rank"
        )
    others = {"ema_decay": args.ema_decay is not None, "push_to_hub": args.push_to_hub}
    others |= {"ZeRO-3": bool(args.deepspeed and args.hf_deepspeed_config.is_zero3()), "FSDP": bool(args.fsdp)}
    if found := [name for name, is_on in others.items() if is_on]:
        raise ValueError(f"lora_rank is {rank}, which cannot go with {', '.join(found)}: leave one of them out")
