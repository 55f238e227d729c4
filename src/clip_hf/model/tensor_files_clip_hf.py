"""The tensors of files, safetensors, pickles or TorchScript archives, and nothing else of them: no code is run.

A TorchScript archive, as OpenAI's released .pt files are, is a zip file: `data.pkl` describes the tree of modules as a
pickle, `data/<key>` holds the bytes of one storage, `code/` holds programs that nobody needs for the weights. The
pickle is read with every name but those of tensors refused, and with every size checked against the file's own.
"""

import collections
import io
import json
import mmap
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils import cached_file

HUB_ARGUMENTS = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# Under which entry the checkpoints of trainings hold their weights.
WRAPPERS = ("state_dict", "model_state_dict", "model")

# A released archive's pickle has less than one megabyte and modules at most seven deep.
MAX_PICKLE_BYTES = 64 * 2**20
MAX_DEPTH = 32

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_TYPED_VALUES = {"build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag"}


class TensorFileError(ValueError):
    """A file is damaged, is no checkpoint, or asks for more than tensors."""


# What readers of zip files, pickles and safetensors raise, sooner or later, on content that is not as it should be.
DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)


def find_file(source: str | PathLike[str], name: str, **hub_arguments: Any) -> str | None:
    """Returns the path of a file of a folder or repository, downloaded if need be; None where there is none.

    Args:
        source: a folder or the name of a repository.
        name: of the file.
        hub_arguments: any of `HUB_ARGUMENTS`, as in `from_pretrained`; others are ignored.
    """
    arguments = {key: value for key, value in hub_arguments.items() if key in HUB_ARGUMENTS and value is not None}
    return cached_file(str(source), name, _raise_exceptions_for_missing_entries=False, **arguments)


def read_weights(
    source: str | PathLike[str],
    names: tuple[str, ...] = WEIGHT_FILES,
    trust_pickle: bool = False,
    **hub_arguments: Any,
) -> dict[str, Tensor]:
    """Returns the weights of a folder or repository, in one file or in several with an index.

    Args:
        source: a folder or the name of a repository.
        names: what the file may be called; the first that is there is read.
        trust_pickle: see `read_tensors`.
        hub_arguments: see `find_file`.

    Raises:
        TensorFileError: a file is damaged, or the files do not belong together.
        FileNotFoundError: there are none.
    """
    for name in names:
        path = find_file(source, name, **hub_arguments)
        if path is not None:
            return read_tensors(path, trust_pickle)
        path = find_file(source, f"{name}.index.json", **hub_arguments)
        if path is not None:
            return _read_shards(source, path, trust_pickle, hub_arguments)
    raise FileNotFoundError(f"{source} has none of {', '.join(names)}, in one file or in several with an index")


def _read_shards(
    source: str | PathLike[str], index: str, trust_pickle: bool, hub_arguments: dict[str, Any]
) -> dict[str, Tensor]:
    try:
        file_of_tensor = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(file_of_tensor.values()))
        if any(Path(file).name != file for file in files):
            raise ValueError("it names files in other folders")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TensorFileError(f"{index} is no index of weights ({type(error).__name__}: {error})") from error
    weights: dict[str, Tensor] = {}
    for file in files:
        path = find_file(source, file, **hub_arguments)
        if path is None:
            raise TensorFileError(f"{index} names {file}, which is not there")
        shard = read_tensors(path, trust_pickle)
        if any(file_of_tensor.get(name) != file for name in shard):
            raise TensorFileError(
                f"{path} holds tensors that {index} does not place there: these files do not belong together"
            )
        weights |= shard
    return weights


def read_tensors(path: str | PathLike[str], trust_pickle: bool = False) -> dict[str, Tensor]:
    """Returns the tensors of a file by their names; of the checkpoint of a training those of the model.

    Args:
        path: a safetensors file, a TorchScript archive, whose code is not run, or a pickle that `torch.save` wrote.
        trust_pickle: also read a pickle that needs more than tensors. It may run any code as it is read.

    Raises:
        TensorFileError: the file is damaged, needs more than tensors, or holds no dictionary of them.
        FileNotFoundError: there is no such file.
    """
    return tensors_of(read_content(path, trust_pickle), path)


def tensors_of(content: Mapping[Any, Any], path: str | PathLike[str]) -> dict[str, Tensor]:
    """Returns the tensors of what `read_content` returned, without what wraps them: see `WRAPPERS`.

    Args:
        content: of a file.
        path: the file's.

    Raises:
        TensorFileError: there is more than names and tensors.
    """
    wrapped = [name for name in WRAPPERS if isinstance(content.get(name), Mapping)]
    content = content[wrapped[0]] if wrapped else content
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise TensorFileError(
                f"{path} holds a {type(value).__name__} under the name {name!r:.80}, but a state dict has names and "
                "tensors alone: save the model's state dict in a file of its own"
            )
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def read_content(path: str | PathLike[str], trust_pickle: bool = False) -> dict[Any, Any]:
    """Returns what a file holds: the tensors by their names, and whatever else a pickled dictionary has.

    The arguments and errors are those of `read_tensors`.
    """
    with open(path, "rb") as file:
        beginning = file.read(16)
    try:
        return _read(path, beginning, trust_pickle)
    except TensorFileError as error:
        raise TensorFileError(f"{path} {error}") from error
    except DAMAGE as error:
        reason = str(error).partition("\n")[0]
        raise TensorFileError(f"{path} is damaged or no checkpoint ({type(error).__name__}: {reason:.200})") from error


def most_common_dtype(weights: Mapping[str, Tensor]) -> torch.dtype:
    """Returns the floating-point type that most values have; OpenAI's files mix two.

    Raises:
        ValueError: there is none.
    """
    sizes: collections.Counter[torch.dtype] = collections.Counter()
    for tensor in weights.values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] += tensor.numel()
    if not sizes:
        raise ValueError(f"none of the {len(weights)} weights is of a floating-point type")
    return sizes.most_common(1)[0][0]


def _read(path: str | PathLike[str], beginning: bytes, trust_pickle: bool) -> dict[str, Any]:
    if beginning.startswith(b"version https://"):
        raise TensorFileError("is a pointer of Git LFS: the file that it stands for was not downloaded")
    if beginning[8:9] == b"{" or str(path).endswith(".safetensors"):
        return load_file(path)
    if not zipfile.is_zipfile(path):
        return _read_pickle(path, False, trust_pickle)
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        if not any(name.endswith("/constants.pkl") for name in archive.namelist()):
            return _read_pickle(path, True, trust_pickle)
        # Mapped, the weights take memory as they are used, and give it back when they are not.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return dict(_named_tensors(_read_root(archive, content)))


def _read_pickle(path: str | PathLike[str], is_zip: bool, trust_pickle: bool) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=not trust_pickle, mmap=is_zip)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise
        raise TensorFileError(
            f"needs more than tensors: it wants {wanted[1]}, and could run code as it is read. Only if you would run "
            "this file as a program: trust_pickle=True (on the command line --trust_pickle)"
        ) from error
    content = content.state_dict() if isinstance(content, nn.Module) else content
    if not isinstance(content, dict):
        raise TensorFileError(f"holds a {type(content).__name__}, but a state dict is a dictionary of tensors")
    return dict(content)


def _read_root(archive: zipfile.ZipFile, content: mmap.mmap) -> Any:
    """Returns the tree of modules: `_Module`s that hold modules, tensors and plain values."""
    folder = archive.namelist()[0].split("/")[0] + "/"
    storages = [member for member in archive.infolist() if member.filename.startswith(f"{folder}data/")]
    # torch compresses code alone; whoever compresses weights wants them to grow.
    if any(member.compress_type != zipfile.ZIP_STORED for member in storages):
        raise TensorFileError("holds compressed weights, which no TorchScript archive does")
    if sum(member.file_size for member in storages) > len(content):
        raise TensorFileError("claims to hold more bytes than it has")
    member = archive.getinfo(f"{folder}data.pkl")
    if member.file_size > MAX_PICKLE_BYTES:
        raise TensorFileError(f"has a data.pkl of {member.file_size} bytes; {MAX_PICKLE_BYTES} are allowed")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise TensorFileError("was written on a big-endian machine, which is not supported")
    pickled = archive.read(member)
    _check_memo(pickled)
    return _TensorUnpickler(io.BytesIO(pickled), archive, folder, content).load()


def _check_memo(content: bytes) -> None:
    # The interpreter reserves memory for the highest index that a pickle mentions, before anything can refuse it.
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "LONG_BINPUT") and argument > len(content):
            raise TensorFileError(f"has a data.pkl that wants a memo of {argument} entries")


class _Module:
    """A module of the archive: what its attributes are, nothing that it could do."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler that knows modules and tensors, and refuses every other name."""

    def __init__(self, file: io.BytesIO, archive: zipfile.ZipFile, folder: str, content: mmap.mmap) -> None:
        super().__init__(file)
        self.archive = archive
        self.folder = folder
        self.content = content
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch.jit._pickle" and name in _TYPED_VALUES:
            return _plain_value
        raise TensorFileError(f"wants {module}.{name}: a checkpoint needs tensors and modules alone, so it is refused")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _device, numel = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise TensorFileError(f"refers to a {kind!r:.40}, where a storage is expected")
        if key not in self.storages:
            member = self.archive.getinfo(f"{self.folder}data/{key}")
            if member.file_size != numel * dtype.itemsize:
                raise TensorFileError(
                    f"is damaged: storage {key} has {member.file_size} bytes, but {numel} values of {dtype} are said "
                    "to be in it"
                )
            self.storages[key] = self._read_storage(member, dtype)
        return self.storages[key]

    def _read_storage(self, member: zipfile.ZipInfo, dtype: torch.dtype) -> Tensor:
        if not member.file_size:
            return torch.empty(0, dtype=dtype)
        # Before its bytes a member repeats its name, and an extra field that may differ from the directory's.
        name_length, extra_length = struct.unpack_from("<HH", self.content, member.header_offset + 26)
        start = member.header_offset + 30 + name_length + extra_length
        if zlib.crc32(memoryview(self.content)[start : start + member.file_size]) != member.CRC:
            raise TensorFileError(f"is damaged: the bytes of {member.filename} do not have the CRC that they should")
        values = torch.frombuffer(self.content, dtype=torch.uint8, count=member.file_size, offset=start)
        return values.view(dtype) if values.data_ptr() % dtype.itemsize == 0 else values.clone().view(dtype)


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_gradient_and_hooks: Any) -> Tensor:
    if len(size) != len(stride) or min((offset, *size, *stride), default=0) < 0:
        raise TensorFileError(f"is damaged: a tensor has size {size}, stride {stride}, offset {offset}")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    numel = torch.Size(size).numel()
    if numel > len(storage) or (numel and last >= len(storage)):
        raise TensorFileError(f"is damaged: a tensor of size {size} reaches beyond its {len(storage)} values")
    return storage.as_strided(size, stride, offset)


def _plain_value(value: Any, *_type: Any) -> Any:
    return value


def _named_tensors(root: Any) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(root, _Module):
        raise TensorFileError(f"holds a {type(root).__name__}, where a module is expected")
    open_modules = [("", root, 0)]
    seen: set[int] = set()
    while open_modules:
        prefix, module, depth = open_modules.pop()
        if id(module) in seen or depth > MAX_DEPTH:
            raise TensorFileError(f"has a module, {prefix or 'the root'}, that is in the tree twice or too deep in it")
        seen.add(id(module))
        for name, value in module.attributes.items():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
            elif isinstance(value, _Module):
                open_modules.append((f"{prefix}{name}.", value, depth + 1))
