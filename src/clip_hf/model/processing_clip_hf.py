"""Pictures and texts to model inputs: the image processor and the tokenizer as one object."""

from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import (
    AudioKwargs,
    ImagesKwargs,
    ProcessingKwargs,
    ProcessorMixin,
    TextKwargs,
    VideosKwargs,
)

from .image_processing_clip_hf import ClipHfImageProcessor
from .options_clip_hf import reject_unknown_options
from .tokenization_clip_hf import ClipHfTokenizer

# A checkpoint's code offers all three: transformers copies the files that this one names.
__all__ = ["ClipHfImageProcessor", "ClipHfProcessor", "ClipHfTokenizer"]

# With those of videos and sound: transformers' chats hand them to whichever processor there is.
_OPTIONS = {"images", "text", "videos", "audio", "common_kwargs"}.union(
    *(kind.__annotations__ for kind in (ProcessingKwargs, TextKwargs, ImagesKwargs, VideosKwargs, AudioKwargs))
)


class ClipHfProcessor(ProcessorMixin):
    """Prepares images, texts or both: `processor(images=..., text=..., return_tensors="pt")`.

    Pictures become `pixel_values` (B, 3, H, W), texts `input_ids` and `attention_mask` (B, L).

    Args:
        image_processor: a `ClipHfImageProcessor`.
        tokenizer: a `ClipHfTokenizer`.

    `from_pretrained(..., backend="pil" | "torch" | "torchvision")` chooses the class of the image processor.

    Raises:
        TypeError: a call has an option that does not exist.
    """

    def __init__(self, image_processor: BaseImageProcessor, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(image_processor, tokenizer)

    def validate_inputs(self, *args: Any, **kwargs: Any) -> None:
        """Checks a call, before it is worked on.

        Raises:
            TypeError: an option does not exist.
            ValueError: there is neither an image nor a text, or a text is no string.
        """
        reject_unknown_options(kwargs, _OPTIONS, "processor")
        super().validate_inputs(*args, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, source: str, processor_dict: Any = None, backend: str | None = None, **kwargs: Any
    ) -> list[Any]:
        options, _ = ClipHfImageProcessor.get_image_processor_dict(source, **kwargs)
        if backend is None and options.get("image_processor_type") == ClipHfImageProcessor.__name__:
            return super()._get_arguments_from_pretrained(source, processor_dict, **kwargs)
        # The Auto classes would open transformers' CLIP as transformers' classes, and OpenCLIP's not at all.
        kwargs["_from_auto"] = True  # as they say it: the options are those of both parts
        image_processor = ClipHfImageProcessor.from_pretrained(source, backend=backend, **kwargs)
        return [image_processor, ClipHfTokenizer.from_pretrained(source, **kwargs)]


ClipHfProcessor.register_for_auto_class()
