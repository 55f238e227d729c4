"""CLIP's tokenizer: cleaned, lower-cased, byte-level BPE (CLIP paper, arXiv 2103.00020, section 2.4)."""

import difflib
import gzip
import itertools
import json
import zlib
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, Self

from tokenizers import AddedToken, models, processors, trainers
from transformers import BatchEncoding, TokenizersBackend
from transformers.processing_utils import TextKwargs
from transformers.tokenization_utils_base import LARGE_INTEGER, TruncationStrategy
from transformers.utils import PaddingStrategy, logging

from .bpe_clip_hf import (
    BYTE_VOCABULARY,
    END_OF_TEXT,
    END_OF_WORD,
    MIN_VOCAB_SIZE,
    OPENAI_VOCAB_SIZE,
    START_OF_TEXT,
    assemble_vocabulary,
    build_backend,
    check_vocabulary,
    parse_merges,
    read_merges,
    read_vocabulary,
)
from .open_clip_checkpoint_clip_hf import read_open_clip_config
from .options_clip_hf import reject_unknown_options
from .padded_batch_clip_hf import is_plain_padded_batch, pad_batch
from .text_preparation_clip_hf import check_texts, prepare_text

logger = logging.get_logger(__name__)

DEFAULT_CONTEXT_LENGTH = 77
MIN_CONTEXT_LENGTH = 3

SPECIAL_TOKENS = {
    "bos_token": START_OF_TEXT,
    "eos_token": END_OF_TEXT,
    "pad_token": END_OF_TEXT,
    "unk_token": END_OF_TEXT,  # transformers' choice; no text meets it, since every byte is in the vocabulary
}

# What transformers reads of a folder beside the vocabulary and the settings: nothing to build on or to save again.
NOT_SETTINGS = {
    *("is_local", "local_files_only", "post_processor"),
    *("tokenizer_padding", "tokenizer_truncation", "_json_padding", "_json_truncation"),
}

# Of a call, and what transformers makes of two of them.
_OPTIONS = {*TextKwargs.__annotations__, "split_special_tokens", "padding_strategy", "truncation_strategy"}


class ClipHfTokenizer(TokenizersBackend):
    """Turns texts into CLIP's token ids, identical to those of OpenAI's own code.

    A text is cleaned and lower-cased, framed by `<|startoftext|>` and `<|endoftext|>` (the paper's [SOS] and [EOS]),
    and cut to `model_max_length` positions with the end token kept, or to a call's `max_length` whatever its padding,
    unless it says `truncation=False`; with `pad_to_multiple_of`, to the largest multiple that fits. The paper writes
    of 76 positions; the released weights hold 77.

    Cleaning is ftfy's repair, HTML unescaping (twice), folding of white space and Python's lower case. Text that
    none of these can change beyond case and spaces, as most captions are, goes to the tokenizers library as it is.
    Offsets refer to the cleaned text. `<|endoftext|>` inside a text becomes the special id exactly where it does in
    OpenAI's code; `split_special_tokens=True` makes ordinary tokens of it.

    Padding repeats the end token, as in transformers (OpenAI pads with id 0; the model never looks behind the first
    end token). It stands on the right only: the text tower reads causally from the left.

    Args:
        vocab: ids of all tokens, or the path of a vocab.json.
        merges: pairs of tokens in the order in which they join, or the path of a merges.txt.
        clean: False leaves out ftfy and HTML unescaping: the ids are those of transformers' `CLIPTokenizer`.
        model_max_length: context length in positions, with the start and end token.
        **kwargs: other settings of transformers' tokenizers, such as `split_special_tokens`.

    Raises:
        TypeError: a call has an option that does not exist.
        ValueError: there is no vocabulary or it is not one of CLIP's kind, the context has less than 3 positions,
            a special token is not the one of the vocabulary, `clean` is misspelt or no bool, or `padding_side` is
            "left".
    """

    vocab_files_names = {
        "vocab_file": "vocab.json",
        "merges_file": "merges.txt",
        "tokenizer_file": "tokenizer.json",
        "open_clip_config_file": "open_clip_config.json",
    }
    model_input_names = ["input_ids", "attention_mask"]
    model = models.BPE

    def __init__(
        self,
        vocab: dict[str, int] | str | PathLike[str] | None = None,
        merges: list[tuple[str, str]] | str | PathLike[str] | None = None,
        *,
        clean: bool = True,
        model_max_length: int = DEFAULT_CONTEXT_LENGTH,
        **kwargs: Any,
    ) -> None:
        if vocab is None or merges is None:
            raise ValueError(
                "ClipHfTokenizer needs a vocabulary and its merges. Load a folder that holds tokenizer.json, or "
                "vocab.json and merges.txt, with from_pretrained; or use from_openai_bpe or train"
            )
        if not isinstance(clean, bool):
            raise ValueError(f"clean is {clean!r}, but must be True or False")
        # Of other unknown names transformers' files have many.
        if misspelt := difflib.get_close_matches("clean", kwargs, n=1, cutoff=0.75):
            raise ValueError(f"{misspelt[0]} is no option of the tokenizer; did you mean clean?")
        vocab = read_vocabulary(vocab) if isinstance(vocab, str | PathLike) else vocab
        merges = read_merges(merges) if isinstance(merges, str | PathLike) else merges
        check_vocabulary(vocab)
        check_context_length(model_max_length)
        for name, token in SPECIAL_TOKENS.items():
            if str(kwargs.setdefault(name, token)) != token:
                raise ValueError(f"{name} is {kwargs[name]!s}, but CLIP's is {token}: leave the argument out")

        self.clean = clean
        self._tokenizer = build_backend(vocab, merges, clean)
        super().__init__(clean=clean, model_max_length=model_max_length, **kwargs)
        self._check_padding_side(None)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], *args: Any, **kwargs: Any) -> Self:
        """Returns the tokenizer of a folder or repository, or raises ValueError that says which has a broken file."""
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except (AttributeError, LookupError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{pretrained_model_name_or_path} has no CLIP tokenizer ({error!r:.200})") from error

    @classmethod
    def from_openai_bpe(
        cls, path: str | PathLike[str], context_length: int = DEFAULT_CONTEXT_LENGTH, clean: bool = True
    ) -> Self:
        """Returns OpenAI's tokenizer of 49,408 entries from the vocabulary file of their repository.

        Args:
            path: bpe_simple_vocab_16e6.txt.gz.
            context_length: longest text in positions, kept as `model_max_length`.
            clean: as in the class.

        Raises:
            ValueError: the file is another one.
        """
        expected = (
            "OpenAI's bpe_simple_vocab_16e6.txt.gz: a gzip file with one header line and then at least "
            f"{OPENAI_VOCAB_SIZE - MIN_VOCAB_SIZE} lines of two tokens each"
        )
        try:
            with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
                vocab, merges = assemble_vocabulary(parse_merges(file.read()), OPENAI_VOCAB_SIZE)
        except (gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
            raise ValueError(f"{path} is not {expected} ({error})") from error
        if len(vocab) < OPENAI_VOCAB_SIZE:
            raise ValueError(f"{path} is not {expected} (it gives {len(merges)} merges)")
        return cls(vocab, merges, clean=clean, model_max_length=context_length)

    @classmethod
    def train(
        cls,
        texts: Iterable[str | list[str]],
        vocab_size: int = OPENAI_VOCAB_SIZE,
        context_length: int = DEFAULT_CONTEXT_LENGTH,
        *,
        clean: bool = True,
        show_progress: bool = False,
    ) -> Self:
        """Returns a new tokenizer whose merges are learned from texts (Sennrich et al., arXiv 1508.07909).

        The vocabulary is laid out as OpenAI's: 256 bytes, 256 bytes at a word's end, the merges, `<|startoftext|>`
        and, with the largest id, `<|endoftext|>`. A pair that occurs only once is not merged, so a small corpus may
        give fewer entries than asked for, with a warning: build the model for `len(tokenizer)` of them.

        Args:
            texts: strings, or lists of them; read once and never held in memory.
            vocab_size: entries, at least 514.
            context_length: longest text in positions, at least 3, kept as `model_max_length`.
            clean: as in the class, here and in the tokenizer returned.
            show_progress: whether the tokenizers library draws its progress bars.

        Raises:
            ValueError: a size is too small, there are no texts, or one of them is not a string.
        """
        if vocab_size < MIN_VOCAB_SIZE:
            raise ValueError(
                f"vocab_size is {vocab_size}, but the bytes and the two special tokens alone are {MIN_VOCAB_SIZE}"
            )
        if isinstance(texts, str):
            raise ValueError("texts is one string: pass a list, or anything else that yields one string per caption")
        texts = iter(texts)
        first = next(texts, None)
        if first is None:
            raise ValueError("There are no texts to learn a vocabulary from: texts yielded nothing")

        blank = cls(*assemble_vocabulary([], MIN_VOCAB_SIZE), clean=clean, model_max_length=context_length)
        backend = blank.backend_tokenizer
        # Ids decide between pairs of one frequency, and those of bytes met at a word's end follow a hash map: given as
        # special tokens, all bytes have the first ids, in one order.
        options: dict[str, Any] = {"special_tokens": list(BYTE_VOCABULARY), "end_of_word_suffix": END_OF_WORD}
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=2, show_progress=show_progress, **options)
        backend.train_from_iterator(map(blank._prepare, itertools.chain([first], texts)), trainer)
        vocab, merges = assemble_vocabulary(json.loads(backend.to_str())["model"]["merges"], vocab_size)
        if len(vocab) < vocab_size:
            logger.warning(f"The texts give a vocabulary of {len(vocab)} entries; {vocab_size} were asked for")
        return cls(vocab, merges, clean=clean, model_max_length=context_length)

    def train_new_from_iterator(
        self, text_iterator: Iterable[str | list[str]], vocab_size: int, length: int | None = None, **kwargs: Any
    ) -> Self:
        """Returns what `train` learns with this tokenizer's context length and cleaning.

        Args:
            text_iterator: strings, or lists of them.
            vocab_size: entries, at least 514.
            length: not needed.
            **kwargs: transformers' further arguments; there are none here, since the special tokens are CLIP's.

        Raises:
            ValueError: as `train`; or there are further arguments.
        """
        if kwargs:
            raise ValueError(f"CLIP's tokenizer is trained without {', '.join(kwargs)}: leave these arguments out")
        return self.train(text_iterator, vocab_size, self.model_max_length, clean=self.clean)

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Returns the constructor's arguments for the files of a folder (called by `from_pretrained`).

        Whatever the folder's tokenizer.json says beside vocabulary and merges is left out: `build_backend` knows
        better than transformers' files, whose normalizer for instance changes some of OpenAI's ids.
        """
        found = super().convert_to_native_format(**kwargs)
        settings = {name: value for name, value in found.items() if name not in NOT_SETTINGS}
        pad_token = settings.pop("pad_token", None)
        if pad_token is not None and str(pad_token) != END_OF_TEXT:
            logger.warning(f"The pad token becomes {END_OF_TEXT} instead of {pad_token!s}; the model reads neither")
        if settings.get("model_max_length", 0) > LARGE_INTEGER:  # transformers' way to write "unknown"
            del settings["model_max_length"]
        if (open_clip_config_file := settings.pop("open_clip_config_file", None)) is not None:
            text_config = read_open_clip_config(Path(open_clip_config_file).parent)["model_cfg"]["text_cfg"]
            context_length = text_config.get("context_length", DEFAULT_CONTEXT_LENGTH)
            settings["model_max_length"] = min(settings.get("model_max_length", context_length), context_length)
        return settings

    def update_post_processor(self) -> None:
        """Frames every text with the start and end token, whatever transformers' settings say."""
        ids = [(token, self._tokenizer.token_to_id(token)) for token in (START_OF_TEXT, END_OF_TEXT)]
        self._tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{START_OF_TEXT} $A {END_OF_TEXT}", special_tokens=ids
        )

    def _get_padding_truncation_strategies(
        self,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        **kwargs: Any,
    ) -> tuple:
        """Cuts long texts unless told otherwise: stock pipelines pad, but never ask for truncation."""
        if truncation is None:
            truncation = True
            if padding is not False and pad_to_multiple_of and max_length is None:
                max_length = self.model_max_length // pad_to_multiple_of * pad_to_multiple_of or None
        bounds = (max_length, pad_to_multiple_of)
        return super()._get_padding_truncation_strategies(padding, truncation, *bounds, **kwargs)

    def _encode_plus(self, text: Any, text_pair: Any = None, *args: Any, **kwargs: Any) -> BatchEncoding:
        reject_unknown_options(kwargs, _OPTIONS, "tokenizer")
        if text_pair is not None:
            raise ValueError("CLIP reads one text at a time, there is no text_pair: pass the texts as one list")
        if isinstance(text, list | tuple) and not text:
            raise ValueError("There are no texts to encode: the list is empty")
        if isinstance(text, list | tuple) and not kwargs.get("is_split_into_words"):
            check_texts(text)
        self._check_padding_side(kwargs.get("padding_side"))
        is_cut = kwargs.get("truncation_strategy") != TruncationStrategy.DO_NOT_TRUNCATE
        if is_cut and kwargs.get("max_length") is not None and kwargs.get("add_special_tokens", True):
            check_context_length(kwargs["max_length"])
        if is_plain_padded_batch(text, kwargs):
            return self._encode_padded([self._prepare(one) for one in text], **kwargs)
        return super()._encode_plus(self._prepare(text), None, *args, **kwargs)

    def _encode_padded(self, texts: list[Any], **options: Any) -> BatchEncoding:
        self.set_truncation_and_padding(
            padding_strategy=PaddingStrategy.DO_NOT_PAD,
            truncation_strategy=options["truncation_strategy"],
            max_length=options.get("max_length"),
            stride=0,
            pad_to_multiple_of=None,
            padding_side=None,
        )
        split = options.get("split_special_tokens")
        self._tokenizer.encode_special_tokens = self.split_special_tokens if split is None else split
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=options.get("add_special_tokens", True))
        shortest = options["max_length"] if options["padding_strategy"] == PaddingStrategy.MAX_LENGTH else 0
        wants_mask = options.get("return_attention_mask")
        wants_mask = "attention_mask" in self.model_input_names if wants_mask is None else wants_mask
        return pad_batch(encodings, shortest, self.pad_token_id, self.pad_token, wants_mask)

    def _add_tokens(self, new_tokens: list[str] | list[AddedToken], special_tokens: bool = False) -> int:
        """Makes added tokens match in any case: what is cleaned reaches the tokenizers library in lower case."""
        tokens = []
        for token in new_tokens:
            state = (AddedToken(token) if isinstance(token, str) else token).__getstate__()
            tokens.append(AddedToken(**state | {"normalized": state["content"] not in SPECIAL_TOKENS.values()}))
        return super()._add_tokens(tokens, special_tokens=special_tokens)

    def _pad(self, *args: Any, padding_side: str | None = None, **kwargs: Any) -> dict:
        self._check_padding_side(padding_side)
        return super()._pad(*args, padding_side=padding_side, **kwargs)

    def _check_padding_side(self, padding_side: str | None) -> None:
        if (padding_side or self.padding_side) != "right":
            raise ValueError(
                "padding_side is 'left', but CLIP's text tower reads causally from the left: use padding_side='right'"
            )

    def _prepare(self, text: str | list) -> str | list:
        """Returns what the tokenizers library is given for a text, or for each text of a batch."""
        if isinstance(text, str):
            return prepare_text(text) if self.clean else text
        if isinstance(text, list | tuple):
            return [self._prepare(item) for item in text]
        raise ValueError(f"A text must be a string, or a list of strings, but got {type(text).__name__}: {text!r:.80}")

    def _save_pretrained(self, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        # The library remembers how the last call cut and padded; the folder must not depend on it.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        return super()._save_pretrained(*args, **kwargs)


def check_context_length(context_length: int) -> None:
    """Raises a ValueError unless a text of one token fits between the start and the end token."""
    if context_length < MIN_CONTEXT_LENGTH:
        raise ValueError(
            f"The context length is {context_length}, but must be at least {MIN_CONTEXT_LENGTH}: start, one token, end"
        )


ClipHfTokenizer.register_for_auto_class()
