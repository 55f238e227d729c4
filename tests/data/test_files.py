import functools
import http.server
import os
import threading

import fsspec
import pytest
import torch

from clip_hf.data import files
from clip_hf.data.files import (
    cache_folder,
    expand_braces,
    find_files,
    local_copy,
    read_bytes,
    with_retries,
    without_query,
)
from clip_hf.data.sources import open_source
from clip_hf.data.training_pairs import TrainingPairs
from tests.data.source_kinds import write_source


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch, tmp_path):
    pauses = []
    monkeypatch.setattr(files.time, "sleep", pauses.append)
    monkeypatch.setenv("CLIP_HF_CACHE", str(tmp_path / "cache"))
    return pauses


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("s3://b/{x,}-{000..002}", [f"s3://b/{x}-00{n}" for x in ("x", "") for n in range(3)]),
    ],
)
def test_braces_stand_for_names(pattern, names):
    assert expand_braces(pattern) == names


def test_files_are_found_near_and_far(tmp_path):
    for name in ("a0", "a1", "b"):
        (tmp_path / name).write_bytes(name.encode())
        fsspec.filesystem("memory").pipe_file(f"/found/{name}", name.encode())
    assert find_files(f"{tmp_path}/a*") == [str(tmp_path / "a0"), str(tmp_path / "a1")]
    assert find_files("memory://found/{b,a?}") == ["memory:///found/b", "memory:///found/a0", "memory:///found/a1"]
    assert [read_bytes(name) for name in find_files("memory://found/*")] == [b"a0", b"a1", b"b"]
    with pytest.raises(FileNotFoundError, match=r"there is no file .*c1 \(of .*c\{1..2\}\)"):
        find_files(f"{tmp_path}/c{{1..2}}")


def test_a_read_is_tried_again_with_growing_pauses(no_pauses):
    failures = [ConnectionError("reset"), TimeoutError("slow")]

    def read():
        if failures:
            raise failures.pop()
        return "data"

    assert with_retries("far", read) == "data"
    assert no_pauses == [0.5, 1]
    with pytest.raises(OSError, match=r"far: ValueError: odd .6 attempts"):
        with_retries("far", lambda: (_ for _ in ()).throw(ValueError("odd")))
    assert no_pauses[2:] == list(files.RETRY_SECONDS)


def test_a_file_that_is_not_there_is_not_tried_again(no_pauses):
    with pytest.raises(FileNotFoundError):
        read_bytes("memory://nowhere")
    assert not no_pauses


@pytest.fixture
def web(tmp_path):
    """A server of the test's folder that answers its first requests with errors: [how many, the status]."""
    trouble = [0, 503]

    class Handler(http.server.SimpleHTTPRequestHandler):
        def send_head(self):
            if trouble[0] > 0:
                trouble[0] -= 1
                return self.send_error(trouble[1])
            return super().send_head()

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", trouble
        server.shutdown()


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("function", [read_bytes, local_copy, find_files])
def test_a_busy_server_is_asked_again(function, status, web, tmp_path, no_pauses):
    url, trouble = web
    (tmp_path / "a.tar").write_bytes(b"tar")
    trouble[:] = 3, status
    found = function(f"{url}/a.tar")
    assert found == b"tar" or found == [f"{url}/a.tar"] or open(found, "rb").read() == b"tar"
    assert no_pauses and trouble[0] == 0


@pytest.mark.parametrize(
    ("kind", "streaming"), [("folder", False), ("csv", True), ("tar", False), ("tar", True), ("parquet", True)]
)
def test_a_signed_address_is_that_of_its_file(kind, streaming, web, drawn, tmp_path):
    write_source(kind, tmp_path / "there", drawn)
    name = "metadata.jsonl" if kind == "folder" else f"000.{kind}"
    one, other = (open_source(f"{web[0]}/there/{name}?sig=a/{n}", streaming=streaming) for n in "bc")
    assert one.name == f"{web[0]}/there/{name}"
    assert one.draw(3, 0, 0)[:3] == other.draw(3, 0, 0)[:3]
    assert {file.suffix for file in cache_folder().glob("*")} <= {os.path.splitext(name)[1], ".lock"}


@pytest.mark.parametrize(("kind", "streaming"), [("tar", False), ("tar", True), ("parquet", True), ("jsonl", True)])
def test_workers_read_from_a_busy_server_as_one_process_from_the_disk(
    kind, streaming, web, drawn, small_processor, tmp_path
):
    url, trouble = web
    near = write_source(kind, tmp_path / "there", drawn, num_shards=2)
    batches = []
    for place, num_workers in ((near, 0), (near.replace(str(tmp_path), url), 2)):
        pairs = TrainingPairs([open_source(place, streaming=streaming)], small_processor)
        trouble[0] = 3 if num_workers else 0
        batches.append(list(pairs.loader(8, num_workers=num_workers)))
    for expected, found in zip(*batches, strict=True):
        assert found["sample_ids"] == expected["sample_ids"]
        assert torch.equal(found["pixel_values"], expected["pixel_values"])


def test_a_query_belongs_to_web_addresses_alone():
    assert without_query("https://host/a.tar?sig=b/c.d?e") == "https://host/a.tar"
    for name in ("s3://bucket/a?.tar", "what?.csv"):
        assert without_query(name) == name


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_server_that_refuses_is_not_asked_again(status, web, no_pauses):
    url, trouble = web
    trouble[:] = 100, status
    for function in (read_bytes, local_copy, find_files):
        with pytest.raises(OSError, match=r"a\.tar"):
            function(f"{url}/a.tar")
    assert not no_pauses


def test_a_server_that_cannot_be_reached_is_asked_again(no_pauses):
    for function in (read_bytes, local_copy, find_files):
        with pytest.raises(OSError, match=r"a\.tar: .* \(6 attempts\)"):
            function("http://127.0.0.1:1/a.tar")
    assert no_pauses == 3 * list(files.RETRY_SECONDS)


def test_a_remote_file_is_copied_once_whoever_asks(monkeypatch):
    system = fsspec.filesystem("memory")
    system.pipe_file("/copied.tar", b"tar")
    fetched = []
    get_file = type(system).get_file

    def counting(self, remote, path, **options):
        fetched.append(remote)
        get_file(self, remote, path, **options)

    monkeypatch.setattr(type(system), "get_file", counting)
    copies = []
    threads = [threading.Thread(target=lambda: copies.append(local_copy("memory://copied.tar"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(copies)) == 1 and len(copies) == 8 and len(fetched) == 1
    assert open(copies[0], "rb").read() == b"tar"
    assert local_copy("near.tar") == "near.tar"


def test_a_file_that_has_changed_is_fetched_anew(tmp_path):
    (tmp_path / "far").mkdir()
    far = tmp_path / "far" / "1.tar"
    far.write_bytes(b"old")
    os.utime(far, (1, 1))
    first = local_copy(far.as_uri())
    far.write_bytes(b"new")
    os.utime(far, (2, 2))
    second = local_copy(far.as_uri())
    assert [open(copy, "rb").read() for copy in (first, second)] == [b"old", b"new"]
    assert local_copy(far.as_uri()) == second


def test_copies_lie_in_the_caches_of_hugging_face_or_where_one_says(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("CLIP_HF_CACHE")
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    assert cache_folder() == tmp_path / "assets" / "clip_hf"


def test_few_copies_are_kept(tmp_path):
    for number in range(6):
        fsspec.filesystem("memory").pipe_file(f"/many/{number}", b"x")
        os.utime(local_copy(f"memory://many/{number}", num_kept=3), (number, number))
    assert len([file for file in (tmp_path / "cache").iterdir() if file.suffix != ".lock"]) == 3
    assert open(local_copy("memory://many/0"), "rb").read() == b"x", "and fetched again when needed"
