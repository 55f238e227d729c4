import io
import os
import tarfile

import numpy as np
import pytest

from clip_hf.data.tar_index import DamagedTarError, TarIndex, members, read_members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def write(path, files, tar_format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def read_all(path) -> list[tuple[str, dict]]:
    with open(path, "rb") as file:
        index = TarIndex(file.fileno(), str(path))
        return [read_members(file.fileno(), *index.span(number), None) for number in range(len(index.starts))]


@pytest.mark.parametrize("tar_format", FORMATS)
def test_members_are_those_that_tarfile_finds(tar_format, tmp_path):
    """Python's own module is the judge: long names, other alphabets, empty files, folders."""
    names = ["a.jpg", "folder/b.txt", "x" * 90 + ".png", "d" * 60 + "/" + "n" * 80 + ".jpg", "empty.txt", "no_ending"]
    if tar_format != "ustar":
        names += ["m" * 300 + ".webp", "фото пляж 海.jpg"]
    rng = np.random.default_rng(0)
    files = [(name, rng.bytes(0 if name == "empty.txt" else rng.integers(1, 3000))) for name in names]
    path = write(tmp_path / "a.tar", files, FORMATS[tar_format])
    with tarfile.open(path) as archive, open(path, "rb") as file:
        expected = [(member.name, archive.extractfile(member).read()) for member in archive]
        found = [
            (name, os.pread(file.fileno(), size, start))
            for _, _, name, start, size in members(file.fileno(), 0, path.stat().st_size)
        ]
    assert found == expected == files


def test_files_of_one_name_are_a_sample(tmp_path):
    files = [("0.jpg", b"j"), ("0.seg.png", b"p"), ("0.txt", b"t"), ("a/1.JPG", b"J"), ("a/1.json", b"{}")]
    files += [("._junk.jpg", b"x"), ("README", b"x"), ("2.jpg", b"1"), ("2.jpg", b"2")]
    assert read_all(write(tmp_path / "a.tar", files)) == [
        ("0", {"jpg": b"j", "seg.png": b"p", "txt": b"t"}),
        ("a/1", {"jpg": b"J", "json": b"{}"}),
        ("2", {"jpg": b"1"}),
        ("2", {"jpg": b"2"}),
    ]


def test_only_the_endings_asked_for_are_read(tmp_path):
    path = write(tmp_path / "a.tar", [("0.jpg", b"j"), ("0.txt", b"t")])
    with open(path, "rb") as file:
        assert read_members(file.fileno(), 0, path.stat().st_size, {"txt"}) == ("0", {"txt": b"t"})


def test_links_and_folders_are_no_samples(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.jpg").write_bytes(b"j")
    (tmp_path / "in" / "1.jpg").symlink_to("0.jpg")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "in", "in.d")
    assert read_all(tmp_path / "a.tar") == [("in.d/0", {"jpg": b"j"})]


def test_numbers_beyond_eight_octal_digits_are_read(tmp_path):
    """A sparse file of 9 GB, whose size GNU and pax write in their own ways."""
    for name, tar_format in FORMATS.items():
        if name == "ustar":
            continue
        path = tmp_path / f"{name}.tar"
        member = tarfile.TarInfo("0.jpg")
        member.size = 9 * 2**30
        with open(path, "wb") as file:
            file.write(member.tobuf(tar_format))
            start = file.tell()
            file.truncate(start + member.size + 1024)
        with open(path, "rb") as file:
            ((_, _, found, data_start, size),) = members(file.fileno(), 0, path.stat().st_size)
        assert (found, data_start, size) == ("0.jpg", start, member.size)


def test_damage_costs_what_lies_behind_it_and_is_told(tmp_path):
    path = write(tmp_path / "a.tar", [(f"{number}.jpg", bytes(700)) for number in range(5)])
    whole = path.read_bytes()
    for cut, num_whole in ((1024 + 512 + 1024, 1), (2 * 1536 + 100, 2), (3 * 1536 + 600, 3)):
        path.write_bytes(whole[:cut])
        with open(path, "rb") as file:
            index = TarIndex(file.fileno(), "a.tar")
        assert len(index.starts) == num_whole and ("cut off" in index.damage or "ends within" in index.damage)
    path.write_bytes(whole[: 2 * 1536] + b"x" + whole[2 * 1536 + 1 :])
    with open(path, "rb") as file:
        index = TarIndex(file.fileno(), "a.tar")
    assert len(index.starts) == 2 and index.damage == "there is no header of a file at byte 3,072"


def test_what_is_no_tar_is_named(tmp_path):
    for compression, message in (
        ("gz", "compressed by gzip"),
        ("bz2", "compressed by bzip2"),
        ("xz", "by xz: unpack"),
    ):
        with tarfile.open(tmp_path / "a.tar", f"w:{compression}") as archive:
            archive.add(__file__, "0.jpg")
        with open(tmp_path / "a.tar", "rb") as file, pytest.raises(ValueError, match=rf"a\.tar is .*{message}"):
            TarIndex(file.fileno(), "a.tar")
    (tmp_path / "a.tar").write_bytes(b"text" * 1000)
    with open(tmp_path / "a.tar", "rb") as file:
        with pytest.raises(ValueError, match=r"a.tar is not a plain tar file: there is no header"):
            TarIndex(file.fileno(), "a.tar")
        with pytest.raises(DamagedTarError):
            list(members(file.fileno(), 0, 600))
