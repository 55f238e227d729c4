"""Repositories of the test Hub: a content-addressed store of objects and a history of commits over it."""

import base64
import binascii
import fnmatch
import hashlib
import io
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

from tests.hub.hub_card import check_card

RepoType = Literal["model", "dataset", "space"]

MAX_REGULAR_BYTES = 10 * 1024**2
"""A larger file must go through LFS, as on the Hub."""

BINARY_PATTERNS = (
    "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx "
    "*.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors *.tar *.tar.* *.tflite *.tgz *.wasm *.xz *.zip "
    "*.zst *tfevents*"
).split()
INITIAL_GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in BINARY_PATTERNS)


class HubError(Exception):
    """A refusal, as the Hub words it: a status, a machine-readable code and a message for people."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = {"X-Error-Message": message.replace("\n", " ")}
        if code is not None:
            self.headers["X-Error-Code"] = code
        if commit is not None:
            self.headers["X-Repo-Commit"] = commit


def entry_not_found(path: str, commit: str) -> HubError:
    """The error of a file or folder that the commit does not hold."""
    return HubError(404, f'Entry not found: "{path}"', "EntryNotFound", commit)


@dataclass(frozen=True)
class FileEntry:
    """One file of a commit: what git would call a blob, and where its content lies."""

    sha256: str
    size: int
    blob_id: str
    lfs: bool
    pointer_size: int = 0

    @property
    def etag(self) -> str:
        """The name under which clients cache the content."""
        return self.sha256 if self.lfs else self.blob_id


@dataclass(frozen=True)
class Commit:
    """One state of a repository; `oid` is a hash of everything else."""

    parent: str | None
    files: Mapping[str, FileEntry]
    title: str
    message: str
    author: str
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))

    @cached_property
    def oid(self) -> str:
        blobs = {path: entry.blob_id for path, entry in sorted(self.files.items())}
        parts = [self.parent, blobs, self.title, self.message, self.author, self.date]
        return hashlib.sha1(json.dumps(parts).encode()).hexdigest()


class ObjectStore:
    """Contents in a folder, each in a file named by its SHA-256; adding the same content twice keeps one."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def path(self, sha256: str) -> Path:
        return self.folder / sha256

    def add(self, stream: IO[bytes], sha256: str | None = None) -> str:
        """Stores the content and returns its name; an expected name that does not fit is refused."""
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as temporary:
            shutil.copyfileobj(stream, temporary)
            temporary.seek(0)
        found = hashlib.sha256()
        with open(temporary.name, "rb") as content:
            while chunk := content.read(1024**2):
                found.update(chunk)
        if sha256 is not None and found.hexdigest() != sha256:
            Path(temporary.name).unlink()
            raise HubError(400, f"BadDigest: expected {sha256}, received {found.hexdigest()}")
        Path(temporary.name).replace(self.path(found.hexdigest()))
        return found.hexdigest()

    def add_regular(self, content: bytes) -> FileEntry:
        """Stores a small file, hashed as git hashes a blob."""
        return FileEntry(self.add(io.BytesIO(content)), len(content), _git_hash(content), lfs=False)

    def lfs_entry(self, sha256: str) -> FileEntry:
        """The entry of a large file whose content has been uploaded before the commit."""
        if sha256 not in self:
            raise HubError(400, f"LFS object {sha256} was never uploaded")
        size = self.path(sha256).stat().st_size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return FileEntry(sha256, size, _git_hash(pointer), lfs=True, pointer_size=len(pointer))


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Repository:
    """A repository: commits, and the references (branches, tags, pull requests) that name some of them.

    Reading needs no lock, since commits never change; every method that moves a reference holds `_lock`.
    """

    def __init__(self, repo_id: str, repo_type: RepoType, private: bool, store: ObjectStore):
        self.id = repo_id
        self.type = repo_type
        self.private = private
        self.store = store
        self.owner = repo_id.split("/")[0]
        self.commits: dict[str, Commit] = {}
        self.references: dict[str, str] = {}
        self._lock = threading.RLock()
        files = {".gitattributes": store.add_regular(INITIAL_GITATTRIBUTES.encode())}
        self.created = self._record(Commit(None, files, "initial commit", "", self.owner), "refs/heads/main")

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, a tag, a full reference or a commit hash (7 characters or more) names."""
        for reference in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if (oid := self.references.get(reference)) is not None:
                return self.commits[oid]
        matches = [oid for oid in list(self.commits) if oid.startswith(revision)] if len(revision) >= 7 else []
        if len(matches) != 1:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[matches[0]]

    def entry(self, revision: str, path: str) -> tuple[Commit, FileEntry]:
        """The file at `path`, with the commit that holds it."""
        commit = self.resolve(revision)
        if path not in commit.files:
            raise entry_not_found(path, commit.oid)
        return commit, commit.files[path]

    def read(self, path: str, revision: str = "main") -> bytes:
        """The content of a file, for tests that look behind the server."""
        return self.store.path(self.entry(revision, path)[1].sha256).read_bytes()

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits that led to `revision`, the newest first."""
        commits = [self.resolve(revision)]
        while (parent := commits[-1].parent) is not None:
            commits.append(self.commits[parent])
        return commits

    def upload_mode(self, revision: str, path: str, size: int) -> Literal["lfs", "regular"]:
        """How a file must be uploaded: by its size, and by the repository's own .gitattributes."""
        if size > MAX_REGULAR_BYTES:
            return "lfs"
        attributes = self.resolve(revision).files.get(".gitattributes")
        lines = self.store.path(attributes.sha256).read_text().splitlines() if attributes else []
        patterns = [line.split()[0] for line in lines if "filter=lfs" in line.split()]
        return "lfs" if any(_pattern_matches(pattern, path) for pattern in patterns) else "regular"

    def commit(self, revision: str, lines: Iterator[dict[str, Any]], author: str) -> Commit:
        """Adds a commit to a branch (or a pull request) from the lines of an upload, all of them or none."""
        with self._lock:
            reference = revision if revision in self.references else f"refs/heads/{revision}"
            if reference not in self.references or reference.startswith("refs/tags/"):
                raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return self._record(self._next(self.resolve(reference), lines, author), reference)

    def open_pull_request(self, revision: str, lines: Iterator[dict[str, Any]], author: str) -> tuple[Commit, int]:
        """Puts the commit on a new reference `refs/pr/<number>` and leaves the branch where it is."""
        with self._lock:
            number = 1 + sum(reference.startswith("refs/pr/") for reference in self.references)
            commit = self._next(self.resolve(revision), lines, author)
            return self._record(commit, f"refs/pr/{number}"), number

    def add_reference(self, reference: str, revision: str) -> None:
        """Creates a branch or a tag; an existing one is never moved."""
        with self._lock:
            if reference in self.references:
                raise HubError(409, f"Reference already exists: {reference}")
            self.references[reference] = self.resolve(revision).oid

    def delete_reference(self, reference: str) -> None:
        with self._lock:
            if reference not in self.references:
                raise HubError(404, f"Invalid rev id: {reference}", "RevisionNotFound")
            if reference == "refs/heads/main":
                raise HubError(403, "The main branch cannot be deleted")
            del self.references[reference]

    def _record(self, commit: Commit, reference: str) -> Commit:
        self.commits[commit.oid] = commit
        self.references[reference] = commit.oid
        return commit

    def _next(self, parent: Commit, lines: Iterator[dict[str, Any]], author: str) -> Commit:
        header = next(lines, {})
        if header.get("key") != "header" or not header["value"].get("summary"):
            raise HubError(400, "The first line of a commit must be its header, with a summary")
        expected = header["value"].get("parentCommit")
        if expected is not None and not parent.oid.startswith(expected):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for line in lines:
            self._apply(line["key"], line["value"], files, parent)
        return Commit(parent.oid, files, header["value"]["summary"], header["value"].get("description", ""), author)

    def _apply(self, key: str, value: dict[str, Any], files: dict[str, FileEntry], parent: Commit) -> None:
        path = value["path"]
        if path.startswith("/") or {"", ".", "..", ".git"} & set(path.rstrip("/").split("/")):
            raise HubError(400, f"Invalid path: {path!r}")
        if key == "file":
            files[path] = self.store.add_regular(_decoded(path, value))
        elif key == "lfsFile":
            files[path] = self.store.lfs_entry(value["oid"])
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound", parent.oid)
        elif key == "deletedFolder":
            inside = [name for name in files if name.startswith(path.rstrip("/") + "/")]
            if not inside:
                raise HubError(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound", parent.oid)
            for name in inside:
                del files[name]
        else:
            raise HubError(400, f"Unknown operation: {key!r}")


def _pattern_matches(pattern: str, path: str) -> bool:
    return fnmatch.fnmatchcase(path if "/" in pattern else path.rpartition("/")[2], pattern)


def _decoded(path: str, value: dict[str, Any]) -> bytes:
    try:
        content = base64.b64decode(value["content"], validate=True)
    except binascii.Error as error:
        raise HubError(400, f"{path} is not base64: {error}") from error
    if len(content) > MAX_REGULAR_BYTES:
        raise HubError(400, f"{path} is larger than 10 MiB and must be uploaded through LFS")
    if path == "README.md" and (errors := check_card(content.decode(errors="replace")).errors):
        raise HubError(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
    return content
