"""Where the samples of a tar file lie, so that each can be read by itself.

Python's `tarfile` builds an object for every member; an archive of a million samples is indexed here in seconds. Read
are the formats that tar programs write: ustar, GNU's long names and numbers, and pax headers.
"""

import os
import re
from array import array
from collections.abc import Container, Iterator

BLOCK = 512
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)


class DamagedTarError(ValueError):
    """A tar file ends too early or holds something else; the message says where."""


class TarIndex:
    """The place of each sample in a tar file.

    Args:
        descriptor: of the file, open for reading.
        name: what errors call the file.

    Attributes:
        starts: byte at which each sample begins.
        damage: what ended the index before the end of the archive, None if nothing did.

    Raises:
        ValueError: the file does not begin as a tar file does.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self.starts = array("q")
        self.damage: str | None = None
        self._end = 0
        last_key = None
        seen: set[str] = set()
        try:
            for start, end, member_name, _, _ in members(descriptor, 0, os.fstat(descriptor).st_size):
                match = _KEY.fullmatch(member_name)
                if match is None:
                    continue
                key, ending = match[1], match[2].lower()
                if key != last_key or ending in seen:
                    self.starts.append(start)
                    last_key, seen = key, set()
                seen.add(ending)
                self._end = end
        except DamagedTarError as error:
            begin = os.pread(descriptor, 5, 0)
            for magic, compression in _COMPRESSIONS.items():
                if begin.startswith(magic):
                    raise ValueError(f"{name} is compressed by {compression}: unpack it first") from error
            if not self.starts:
                raise ValueError(f"{name} is not a plain tar file: {error}") from error
            self.damage = str(error)

    def span(self, index: int) -> tuple[int, int]:
        """Returns where a sample begins and ends."""
        return self.starts[index], self.starts[index + 1] if index + 1 < len(self.starts) else self._end


def read_members(
    descriptor: int, start: int, end: int, endings: Container[str] | None
) -> tuple[str, dict[str, bytes]]:
    """Returns the key of a sample and its files by their endings.

    Args:
        descriptor: of the tar file.
        start: byte at which the sample begins.
        end: byte behind it.
        endings: which files to read; None for all.
    """
    key, files = "", {}
    for _, _, name, data_start, size in members(descriptor, start, end):
        match = _KEY.fullmatch(name)
        if match is not None:
            key, ending = match[1], match[2].lower()
            if endings is None or ending.rpartition(".")[2] in endings:
                files[ending] = os.pread(descriptor, size, data_start)
    return key, files


def members(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int, str, int, int]]:
    """Yields the files of a part of an archive: where each begins and ends, its name, where its data begins, its size.

    Raises:
        DamagedTarError: a header is damaged or something is missing.
    """
    position, begin = start, start
    long_name: str | None = None
    long_size: int | None = None
    while position < end:
        header = os.pread(descriptor, BLOCK, position)
        if len(header) < BLOCK:
            raise DamagedTarError(f"it ends within the header at byte {position:,}")
        if not any(header):
            return
        name, size, kind = _parse_header(header, position)
        if kind in b"xLK":  # what follows says more of the member behind it
            size_there = size
        else:
            size_there = size if long_size is None else long_size
        data_start = position + BLOCK
        position = data_start + -(-size_there // BLOCK) * BLOCK
        if data_start + size_there > end:
            raise DamagedTarError(f"{name} at byte {data_start - BLOCK:,} is cut off")
        if kind == b"L":
            long_name = os.pread(descriptor, size, data_start).rstrip(b"\0").decode(errors="surrogateescape")
        elif kind == b"x":
            records = _parse_pax(os.pread(descriptor, size, data_start))
            long_name = records.get("path", long_name)
            long_size = int(records["size"]) if "size" in records else None
        elif kind not in b"Kg":
            if kind in b"0\0" or kind == b"7":
                yield begin, position, long_name or name, data_start, size_there
            begin, long_name, long_size = position, None, None


def _parse_header(header: bytes, position: int) -> tuple[str, int, bytes]:
    try:
        if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 32:
            raise ValueError
        size = _number(header[124:136])
    except ValueError:
        raise DamagedTarError(f"there is no header of a file at byte {position:,}") from None
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    path = prefix + b"/" + name if prefix else name
    return path.decode(errors="surrogateescape"), size, header[156:157]


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU's way to write more than eight octal digits
        return int.from_bytes(field[1:], "big")
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _parse_pax(data: bytes) -> dict[str, str]:
    records, position = {}, 0
    while position < len(data):
        length, space, _ = data[position:].partition(b" ")
        if not space or not length.isdigit() or int(length) == 0:
            break
        key, _, value = data[position + len(length) + 1 : position + int(length) - 1].partition(b"=")
        records[key.decode(errors="replace")] = value.decode(errors="surrogateescape")
        position += int(length)
    return records
