"""What the joint model and its towers share: complete loading, saving in our own layout, default weights, pixels."""

import functools
import math
import os
import re
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import TransformersKwargs

from .configuration_clip_hf_towers import ClipHfImageConfig
from .conversion_clip_hf import IGNORED_KEYS, PROJECTION_KEYS, TEXT_TOWER_KEYS
from .open_clip_checkpoint_clip_hf import OPEN_CLIP_WEIGHT_FILES, is_open_clip
from .tensor_files_clip_hf import DAMAGE, HUB_ARGUMENTS, WEIGHT_FILES, TensorFileError, read_weights

# What transformers passes on to any model: flags for outputs, hints to attention, what tokenizers and collators add.
PASSED_ON = frozenset(TransformersKwargs.__annotations__) - {"position_ids"} | frozenset(
    "debug_io debug_io_dir labels prune_layers token_type_ids use_cache".split()
)


class ClipHfPreTrainedModel(PreTrainedModel):
    """A `PreTrainedModel` that never leaves a weight at random values, or one of the file unused, without an error."""

    base_model_prefix = "clip_hf"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        if getattr(config, "model_type", None) != self.config_class.model_type:
            raise ValueError(
                f"{type(self).__name__} needs a {self.config_class.__name__}, but got a {type(config).__name__}: "
                "leave config out of from_pretrained, which translates a checkpoint's own, or make one of that class"
            )
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args: Any,
        output_loading_info: bool = False,
        trust_pickle: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Self | tuple[Self, dict[str, Any]]:
        """Returns the model of a checkpoint: ours, transformers' CLIP, OpenCLIP's, or a state dict in OpenAI's layout.

        Args:
            pretrained_model_name_or_path: a folder or a Hub repository; None with `config` and `state_dict`.
            args: as in `PreTrainedModel.from_pretrained`.
            output_loading_info: also return the missing, unexpected and mismatched keys, instead of raising on them.
            trust_pickle: also open a .bin file that needs more than tensors, which may run any code.
            ignore_mismatched_sizes: draw new weights in place of those of another shape, instead of raising on them.
            kwargs: as in `PreTrainedModel.from_pretrained`. `vision_config={"image_size": 336}` opens a joint
                checkpoint at another resolution, its image positions interpolated; for a tower that is
                `image_size=336`. `projection_dim=None` opens a tower without its projection.

        Raises:
            ValueError: the source is a file, a file is damaged or needs more than tensors, the configuration is
                another model's, or the checkpoint lacks weights of the model, has them in another shape, or holds
                weights that the model has no place for.
        """
        source = pretrained_model_name_or_path
        if source is not None and kwargs.get("config") is None and os.path.isfile(source):
            raise ValueError(
                f"{source} is a file, but from_pretrained opens folders and repositories on the Hub: "
                "ClipHfModel.from_openai opens one of OpenAI's .pt files"
            )
        names = OPEN_CLIP_WEIGHT_FILES if is_open_clip(source, **kwargs) else WEIGHT_FILES
        # transformers' own reader knows nothing of OpenCLIP's files, and of a pickle only whether it is harmless.
        reads_itself = source is not None and (trust_pickle or names == OPEN_CLIP_WEIGHT_FILES)
        load = functools.partial(cls._from_weights, names, trust_pickle) if reads_itself else super().from_pretrained
        try:
            model, info = load(source, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
        except DAMAGE as error:
            if source is not None and not isinstance(error, OSError):  # which says what is not there
                _raise_if_damaged(source, names, kwargs)
            raise
        if output_loading_info:
            return model, info
        problems = _problems(info | ({"mismatched_keys": ()} if ignore_mismatched_sizes else {}))
        if problems:
            raise ValueError(
                f"{source or 'the state dict'} does not fit {cls.__name__}: {'; '.join(problems)}. "
                "Pass output_loading_info=True to get the model and these lists instead."
            )
        return model

    @classmethod
    def _from_weights(
        cls, names: tuple[str, ...], trust_pickle: bool, source: str | os.PathLike, *args: Any, **kwargs: Any
    ) -> tuple[Self, dict[str, Any]]:
        hub_arguments = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        config = kwargs.pop("config", None)
        if config is None:
            names_of_fields = kwargs.keys() & cls.config_class.__dataclass_fields__.keys() - {"dtype"}
            fields = {name: kwargs.pop(name) for name in names_of_fields}
            config = cls.config_class.from_pretrained(source, **hub_arguments, **fields)
        weights = read_weights(source, names, trust_pickle, **hub_arguments)
        model, info = super().from_pretrained(None, *args, config=config, state_dict=weights, **kwargs)
        model.name_or_path = model.config.name_or_path = str(source)
        return model, info

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, save_original_format: bool = False, **kwargs: Any
    ) -> None:
        """Saves the model in our own layout, whatever layout it came from.

        Args:
            save_directory: the folder, made if needed.
            args: as in `PreTrainedModel.save_pretrained`.
            save_original_format: True gives the weights the names and shapes that they were loaded with; the
                configuration is ours all the same. scripts/convert_checkpoint.py writes all files of a layout.
            kwargs: as in `PreTrainedModel.save_pretrained`.
        """
        if save_original_format:
            # Under ZeRO-3, transformers leaves the rows for other layouts in. Without a renaming, the layout is ours.
            self._weight_conversions = [row for row in getattr(self, "_weight_conversions", ()) if row.was_used()]
            save_original_format = any(isinstance(row, WeightRenaming) for row in self._weight_conversions)
        for key in self.config.sub_configs:  # loading writes the dtype there too; both must save the same file
            getattr(self.config, key).dtype = self.dtype
        super().save_pretrained(save_directory, *args, save_original_format=save_original_format, **kwargs)

    def _adjust_missing_and_unexpected_keys(self, loading_info: Any) -> None:
        super()._adjust_missing_and_unexpected_keys(loading_info)
        # What could not be converted has another shape than any layout gives it; transformers would not name it.
        for name in loading_info.conversion_errors:
            loading_info.missing_keys.discard(name)
            loading_info.mismatched_keys.add((name, None, None))
        loading_info.conversion_errors.clear()
        ignored = re.compile("|".join((*IGNORED_KEYS, *self._other_parts())))
        loading_info.unexpected_keys = {key for key in loading_info.unexpected_keys if not ignored.search(key)}

    def _other_parts(self) -> tuple[str, ...]:
        """Returns patterns of the keys in a joint checkpoint that are another part's."""
        return ()

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # For code outside transformers, modules without parameters of their own would be passed over; ours draw the
        # weights of their children, with functions that leave loaded weights alone.
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # torch's own default, which the public code leaves wherever it sets nothing itself. Written out, because
        # `reset_parameters` reads shapes, and under ZeRO-3 a parameter that is not gathered has none.
        if isinstance(module, nn.Linear):
            _draw_uniform(module, fan_in=module.in_features)
        elif isinstance(module, nn.Conv2d):
            _draw_uniform(module, fan_in=module.in_channels * math.prod(module.kernel_size))
        else:
            super()._init_weights(module)


def require_known_arguments(model: nn.Module, arguments: dict[str, Any]) -> None:
    """Raises TypeError for an argument that a tower would pass over: one misspelt, or of other models.

    Args:
        model: whose forward got them, for the message.
        arguments: by name; None counts as not given.
    """
    for name, value in arguments.items():
        if name not in PASSED_ON and value is not None:
            raise TypeError(f"{type(model).__name__}.forward() got an unexpected keyword argument '{name}'")


def _raise_if_damaged(source: str | os.PathLike, names: tuple[str, ...], kwargs: dict[str, Any]) -> None:
    """Raises TensorFileError where a file of weights is the reason for what transformers raised without its name."""
    try:
        read_weights(source, names, **kwargs)
    except TensorFileError:
        raise
    except (ValueError, OSError):
        return  # the first error says more


def _problems(info: dict[str, Any]) -> list[str]:
    keys = {kind: sorted(map(str, info[f"{kind}_keys"])) for kind in ("missing", "unexpected")}
    keys["wrongly shaped"] = sorted(
        name if expected is None else f"{name} ({list(found)} instead of {list(expected)})"
        for name, found, expected in info["mismatched_keys"]
    )
    return [f"{kind} weights ({len(names)}): {', '.join(names)}" for kind, names in keys.items() if names]


def _draw_uniform(module: nn.Linear | nn.Conv2d, fan_in: int) -> None:
    for parameter in (module.weight, module.bias):
        if parameter is not None:
            init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5)


@dataclass
class ClipHfImageOutput(BaseModelOutputWithPooling):
    """What an image tower returns.

    Args:
        last_hidden_state: ViT: (B, 1 + patches, D), before the last layer norm. ResNet: (B, D, H / 32, W / 32). None
            with `pooled_only`.
        pooler_output: (B, D), the image feature before the projection.
        hidden_states: the input and output of every block, where asked for.
        attentions: the attention weights of every block, where asked for.
        image_embeds: (B, E), projected, not normalised; None for a tower without projection.
    """

    image_embeds: Tensor | None = None


class ClipHfImageModel(ClipHfPreTrainedModel):
    """What both image towers are to the loader and to pipelines."""

    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def _other_parts(self) -> tuple[str, ...]:
        return TEXT_TOWER_KEYS if self.config.projection_dim else (*TEXT_TOWER_KEYS, *PROJECTION_KEYS)


def normalize_pixels(pixel_values: Tensor, config: ClipHfImageConfig, dtype: torch.dtype) -> Tensor:
    """Returns pixels as the image tower computes with them.

    uint8 pixels are raw and are normalised here, on the device they are on; floating-point pixels are normalised
    already. The dtype alone decides.

    Args:
        pixel_values: (B, C, H, W), uint8 in 0..255 or floating point, normalised.
        config: gives `image_mean` and `image_std`, in units of [0, 1].
        dtype: of the tower's weights.

    Raises:
        ValueError: the pixels are not four-dimensional with the tower's number of channels, or are of another
            integer type.
    """
    if pixel_values.dim() != 4 or pixel_values.shape[1] != config.num_channels:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}, but must be (batch, {config.num_channels}, height, "
            "width)"
        )
    if pixel_values.dtype == torch.uint8:
        mean, std = (
            torch.tensor(values, device=pixel_values.device).view(-1, 1, 1)
            for values in (config.image_mean, config.image_std)
        )
        pixel_values = (pixel_values / 255 - mean) / std
    elif not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values is {pixel_values.dtype}, but must be uint8 (raw) or floating point (normalised)"
        )
    return pixel_values.to(dtype)


def normalize_embeds(embeds: Tensor) -> Tensor:
    """Returns embeddings (B, E) at unit length, in float32 or what they are of more than that.

    Half precision would cost their length three digits, and every similarity with it.
    """
    return nn.functional.normalize(embeds.to(torch.promote_types(embeds.dtype, torch.float32)), dim=-1)
