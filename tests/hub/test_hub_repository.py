"""What the test Hub's repositories refuse, below the protocol: a refused commit leaves nothing behind."""

import base64
import hashlib
import io

import pytest

from tests.hub.hub_repository import MAX_REGULAR_BYTES, HubError, ObjectStore, Repository

HEADER = {"key": "header", "value": {"summary": "title"}}
ABSENT = hashlib.sha256(b"never uploaded").hexdigest()


@pytest.fixture
def repository(tmp_path) -> Repository:
    return Repository("tester/model", "model", private=False, store=ObjectStore(tmp_path))


def file(path: str, content: bytes = b"text") -> dict:
    return {"key": "file", "value": {"path": path, "content": base64.b64encode(content).decode()}}


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ({"key": "lfsFile", "value": {"path": "w.bin", "oid": ABSENT}}, 400, "never uploaded"),
        ({"key": "copyFile", "value": {"path": "a"}}, 400, "Unknown operation"),
        ({"key": "file", "value": {"path": "a", "content": "%"}}, 400, "not base64"),
        (file("../a"), 400, "Invalid path"),
        (file("/a"), 400, "Invalid path"),
        (file("a//b"), 400, "Invalid path"),
        (file("big", bytes(MAX_REGULAR_BYTES + 1)), 400, "through LFS"),
        (file("README.md", b"---\ntags: [a\n---\n"), 400, "Invalid metadata"),
        ({"key": "deletedFile", "value": {"path": "a"}}, 404, "name doesn't exist"),
        ({"key": "deletedFolder", "value": {"path": "a/"}}, 404, "name doesn't exist"),
    ],
)
def test_a_commit_with_one_bad_line_is_refused_whole(repository, line, status, message):
    with pytest.raises(HubError, match=message) as refusal:
        repository.commit("main", iter([HEADER, file("good.txt"), line]), "tester")
    assert refusal.value.status == status
    assert repository.history() == [repository.created] and "good.txt" not in repository.resolve("main").files


@pytest.mark.parametrize("header", [{}, {"key": "header", "value": {"summary": ""}}, file("a")])
def test_a_commit_needs_a_header(repository, header):
    with pytest.raises(HubError, match="header"):
        repository.commit("main", iter([header]), "tester")


def test_the_same_change_twice_makes_two_commits(repository):
    commits = [repository.commit("main", iter([HEADER, file("a")]), "tester") for _ in range(2)]
    assert len({commit.oid for commit in commits}) == 2
    assert repository.history() == [*reversed(commits), repository.created]


def test_short_hashes_need_seven_characters(repository):
    oid = repository.created.oid
    assert repository.resolve(oid[:7]) is repository.created
    with pytest.raises(HubError, match="Invalid rev id") as refusal:
        repository.resolve(oid[:6])
    assert refusal.value.headers["X-Error-Code"] == "RevisionNotFound"


def test_the_main_branch_stays(repository):
    with pytest.raises(HubError, match="main branch"):
        repository.delete_reference("refs/heads/main")


def test_the_store_keeps_one_copy_and_refuses_damaged_content(tmp_path):
    store = ObjectStore(tmp_path / "objects")
    names = {store.add(io.BytesIO(b"content")) for _ in range(3)}
    assert names == {hashlib.sha256(b"content").hexdigest()}
    with pytest.raises(HubError, match="BadDigest"):
        store.add(io.BytesIO(b"damaged"), sha256=ABSENT)
    assert [path.name for path in store.folder.iterdir()] == list(names)


@pytest.mark.parametrize(
    ("path", "size", "mode"),
    [
        ("config.json", 10, "regular"),
        ("model.safetensors", 10, "lfs"),
        ("runs/events.out.tfevents.1", 10, "lfs"),
        ("config.json", MAX_REGULAR_BYTES, "regular"),
        ("config.json", MAX_REGULAR_BYTES + 1, "lfs"),
    ],
)
def test_upload_mode_follows_size_and_gitattributes(repository, path, size, mode):
    assert repository.upload_mode("main", path, size) == mode
    repository.commit("main", iter([HEADER, file(".gitattributes", b"*.json filter=lfs -text\n")]), "tester")
    changed = "lfs" if path.endswith(".json") or size > MAX_REGULAR_BYTES else "regular"
    assert repository.upload_mode("main", path, size) == changed
