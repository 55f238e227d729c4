"""What each tower of a CLIP model is: text, ViT and ResNet (CLIP paper, arXiv 2103.00020, section 2.4)."""

# No `from __future__ import annotations` here: it turns the type checks of `@strict` off without a word.

import difflib
from os import PathLike
from typing import Any, ClassVar, Self

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .conversion_clip_hf import TRANSFORMERS_MODEL_TYPES, translate_transformers_config
from .normalization_clip_hf import read_normalization
from .open_clip_checkpoint_clip_hf import is_open_clip, read_open_clip_config, translate_open_clip_config
from .tensor_files_clip_hf import HUB_ARGUMENTS

FORMAT_VERSION = 1
HEAD_SIZE = 64
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

# Keys that transformers itself passes through a config's constructor or writes into config.json.
TRANSFORMERS_KEYS = frozenset(
    "attn_implementation auto_map custom_pipelines distributed_config experts_implementation fusion_config "
    "initializer_range is_decoder model_type name_or_path num_labels output_attentions per_layer_config "
    "quantization_config torch_dtype transformers_weights use_cache".split()
)


def default_num_heads(width: int) -> int:
    """Returns the number of 64-wide attention heads that a width holds, one at least."""
    return max(1, width // HEAD_SIZE)


class ClipHfBaseConfig(PreTrainedConfig):
    """What all configurations share: a format version, and an error for a key that no field has.

    Args:
        format_version: the layout of configuration and checkpoint. A reader refuses versions newer than its own.

    Raises:
        ValueError: a key is unknown (the message suggests the nearest one), or the format is newer than this package.
    """

    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        """Checks the format and the keys, then lets transformers take its own."""
        _require_known_format(self.format_version)
        for key in kwargs:
            if key not in TRANSFORMERS_KEYS and not key.startswith("_"):
                known = sorted(type(self).__dataclass_fields__.keys() - {"format_version"})
                nearest = difflib.get_close_matches(key, known, n=1)
                suggestion = f"did you mean '{nearest[0]}'?" if nearest else f"known keys are {', '.join(known)}"
                raise ValueError(f"{type(self).__name__} has no key '{key}': {suggestion}")
        # The class says what it is; an entry in the instance would shadow it in transformers' look-ups.
        kwargs.pop("model_type", None)
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the raw configuration of a checkpoint; transformers' and OpenCLIP's are rewritten as ours.

        Raises:
            ValueError: the file holds no configuration.
        """
        if is_open_clip(pretrained_model_name_or_path, **kwargs):
            content = read_open_clip_config(pretrained_model_name_or_path, **kwargs)
            unused = {name: value for name, value in kwargs.items() if name not in HUB_ARGUMENTS}
            return translate_open_clip_config(content), unused
        try:
            config_dict, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
            if config_dict.get("model_type") in TRANSFORMERS_MODEL_TYPES:
                normalization = read_normalization(pretrained_model_name_or_path, **kwargs)
                config_dict = translate_transformers_config(config_dict, normalization)
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(
                f"the config.json of {pretrained_model_name_or_path} is no configuration of a model "
                f"({type(error).__name__}: {error})"
            ) from error
        return config_dict, unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Returns the configuration that a dictionary describes.

        Raises:
            ValueError: another kind of model, a format newer than this package, or fields that do not go together.
        """
        _require_known_format(config_dict.get("format_version", FORMAT_VERSION))  # fields may be of other types
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(
                f"{cls.__name__} describes '{cls.model_type}' models, but the configuration says '{found}': "
                "open it with AutoConfig or AutoModel, which pick the class from the configuration"
            )
        result = super().from_dict(config_dict, **kwargs)
        try:
            (result[0] if isinstance(result, tuple) else result).validate()  # transformers sets such fields at last
        except StrictDataclassError as error:
            raise ValueError(str(error)) from error
        return result

    def require_positive(self, *names: str) -> None:
        """Raises ValueError unless every named field is at least 1."""
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{type(self).__name__}.{name} is {getattr(self, name)}, but must be at least 1")


def _require_known_format(version: int) -> None:
    if version > FORMAT_VERSION:
        raise ValueError(
            f"this checkpoint has format {version}, but this clip_hf reads formats up to {FORMAT_VERSION}: upgrade it "
            "with `pip install --upgrade clip_hf`"
        )


class ClipHfTransformerConfig(ClipHfBaseConfig):
    """The fields that both Transformers, text and ViT, have.

    Args:
        hidden_size: width of the residual stream.
        intermediate_size: width inside the MLP; `4 * hidden_size` if not given.
        num_hidden_layers: number of residual attention blocks.
        num_attention_heads: `hidden_size / 64` if not given, as in every released model.
        hidden_act: "quick_gelu" (x * sigmoid(1.702 x), all released models) or another of transformers' activations.
        layer_norm_eps: added to the variance in every layer norm.
        attention_dropout: probability of dropping an attention weight in training.
        projection_dim: size of the joint embedding space; None for a tower that ends at its own feature.
    """

    hidden_size: int = 512
    intermediate_size: int | None = None
    num_hidden_layers: int = 12
    num_attention_heads: int | None = None
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float | int = 1e-5
    attention_dropout: float | int = 0.0
    projection_dim: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fills the fields that follow from the width."""
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.num_attention_heads is None:
            self.num_attention_heads = default_num_heads(self.hidden_size)
        super().__post_init__(**kwargs)
        self.validate_transformer()

    def validate_transformer(self) -> None:
        """Raises ValueError where width, heads and depth do not fit together, or dropout or activation is none."""
        self.require_positive("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if not 0 <= self.attention_dropout < 1:
            raise ValueError(f"attention_dropout is {self.attention_dropout}, but must be in [0, 1)")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act is '{self.hidden_act}', but must be one of {', '.join(sorted(ACT2FN))}")


@strict
class ClipHfTextConfig(ClipHfTransformerConfig):
    """Configuration of the causal text Transformer (CLIP paper, section 2.4).

    Args:
        vocab_size: number of token ids. The two largest are start-of-text and end-of-text unless given otherwise.
        max_position_embeddings: longest text in tokens, both special tokens counted. The paper says 76, the released
            weights hold 77.
        bos_token_id: start of text, the paper's [SOS]; `vocab_size - 2` if not given.
        eos_token_id: end of text, the paper's [EOS], where the text feature is read; `vocab_size - 1` if not given.
        pad_token_id: the id that pads shorter texts; `eos_token_id` if not given. The model never looks at it.

    The other fields are those of `ClipHfTransformerConfig`.

    Raises:
        ValueError: a value is out of range or two values contradict each other.
    """

    model_type = "clip_hf_text"
    base_config_key = "text_config"

    vocab_size: int = 49408
    max_position_embeddings: int = 77
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fills the special token ids from the vocabulary's size."""
        if self.bos_token_id is None:
            self.bos_token_id = self.vocab_size - 2
        if self.eos_token_id is None:
            self.eos_token_id = self.vocab_size - 1
        if self.pad_token_id is None:
            self.pad_token_id = self.eos_token_id
        super().__post_init__(**kwargs)
        self.validate_vocabulary()

    def validate_vocabulary(self) -> None:
        """Raises ValueError where the special tokens lie outside the vocabulary or no text fits."""
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(f"{name} {getattr(self, name)} is outside the vocabulary of {self.vocab_size} ids")
        if self.bos_token_id == self.eos_token_id:
            raise ValueError(f"bos_token_id and eos_token_id are both {self.eos_token_id}, but must differ")
        if self.max_position_embeddings < 3:
            raise ValueError(
                f"max_position_embeddings is {self.max_position_embeddings}, but start, end and one token need 3"
            )


class ClipHfImageConfig(ClipHfBaseConfig):
    """The fields that describe the images an image tower takes.

    Args:
        image_size: height and width in pixels.
        num_channels: 3 for RGB.
        image_mean: mean of each channel in [0, 1], which the model subtracts from uint8 pixels.
        image_std: deviation of each channel in [0, 1], by which the model divides uint8 pixels.
    """

    image_size: int = 224
    num_channels: int = 3
    image_mean: tuple[float, ...] | list[float] = IMAGE_MEAN
    image_std: tuple[float, ...] | list[float] = IMAGE_STD

    def __post_init__(self, **kwargs: Any) -> None:
        """Makes tuples of the lists that JSON brings, so that a reloaded configuration is equal."""
        self.image_mean = tuple(self.image_mean)
        self.image_std = tuple(self.image_std)
        super().__post_init__(**kwargs)
        self.validate_pixels()

    def validate_pixels(self) -> None:
        """Raises ValueError where the channel statistics do not fit the channels."""
        self.require_positive("image_size", "num_channels")
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != self.num_channels:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} values, but num_channels is {self.num_channels}"
                )
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std is {self.image_std}, but every deviation must be above 0")


@strict
class ClipHfViTConfig(ClipHfImageConfig, ClipHfTransformerConfig):
    """Configuration of the ViT image tower (CLIP paper, section 2.4).

    Args:
        patch_size: height and width of a patch in pixels; it divides `image_size`.

    The other fields are those of `ClipHfTransformerConfig` and `ClipHfImageConfig`.

    Raises:
        ValueError: a value is out of range or two values contradict each other.
    """

    model_type = "clip_hf_vit"
    base_config_key = "vision_config"

    hidden_size: int = 768
    patch_size: int = 32

    def validate_patches(self) -> None:
        """Raises ValueError unless whole patches tile the image."""
        self.require_positive("patch_size")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")

    def __post_init__(self, **kwargs: Any) -> None:
        """Fills and checks all fields."""
        super().__post_init__(**kwargs)
        self.validate_patches()

    @property
    def grid_size(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@strict
class ClipHfResNetConfig(ClipHfImageConfig):
    """Configuration of the modified ResNet image tower (CLIP paper, section 2.4).

    Args:
        width: channels of the first stage's 3x3 convolutions; the last feature map has 32 times as many.
        depths: bottleneck blocks in each of the four stages.
        num_attention_heads: heads of the attention pool; `32 * width / 64` if not given, as in every released model.
        projection_dim: size of the joint embedding space; None for a tower that ends at its own feature.

    The other fields are those of `ClipHfImageConfig`; `image_size` is a multiple of 32.

    Raises:
        ValueError: a value is out of range or two values contradict each other.
    """

    model_type = "clip_hf_resnet"
    base_config_key = "vision_config"

    width: int = 64
    depths: tuple[int, ...] | list[int] = (3, 4, 6, 3)
    num_attention_heads: int | None = None
    projection_dim: int | None = None

    DOWNSAMPLING: ClassVar[int] = 32

    def __post_init__(self, **kwargs: Any) -> None:
        """Fills and checks all fields."""
        self.depths = tuple(self.depths)
        if self.num_attention_heads is None:
            self.num_attention_heads = default_num_heads(self.hidden_size)
        super().__post_init__(**kwargs)
        self.validate_stages()

    def validate_stages(self) -> None:
        """Raises ValueError where stages, width, heads or image size do not fit together."""
        self.require_positive("width", "num_attention_heads")
        if self.width % 2:
            raise ValueError(f"width is {self.width}, but the stem halves it: it must be even")
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise ValueError(f"depths is {self.depths}, but there are four stages of at least one block each")
        if self.image_size % self.DOWNSAMPLING:
            raise ValueError(f"image_size {self.image_size} is not a multiple of {self.DOWNSAMPLING}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"the last feature map's {self.hidden_size} channels (32 * width {self.width}) are not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )

    @property
    def hidden_size(self) -> int:
        """Channels of the last feature map and width of the attention pool."""
        return 32 * self.width

    @property
    def grid_size(self) -> int:
        """Positions of the last feature map along one side."""
        return self.image_size // self.DOWNSAMPLING


for config_class in (ClipHfTextConfig, ClipHfViTConfig, ClipHfResNetConfig):
    config_class.register_for_auto_class()
