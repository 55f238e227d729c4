"""The routes of the test Hub: what huggingface_hub and transformers ask for, on top of the repositories."""

import hashlib
import io
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from tests.hub.hub_access import Access, Account
from tests.hub.hub_card import check_card
from tests.hub.hub_connection import Request, Response
from tests.hub.hub_repository import (
    Commit,
    FileEntry,
    HubError,
    ObjectStore,
    Repository,
    RepoType,
    entry_not_found,
)

REPO = r"(?P<repo_id>[^/]+(?:/[^/]+)?)"
API_REPO = rf"/api/(?P<repo_type>model|dataset|space)s/{REPO}"
FILES_REPO = rf"/(?:(?P<repo_type>dataset|space)s/)?{REPO}"
REVISION = r"(?P<revision>[^/]+)"


class HubApi:
    """Answers requests: `routes` says which method serves which path.

    Large files are answered with a redirect to the storage server, another origin, as on the Hub.
    """

    def __init__(self, folder: Path):
        self.store = ObjectStore(folder)
        self.access = Access()
        self.repositories: dict[tuple[RepoType, str], Repository] = {}
        self.url = ""
        self.storage_url = ""
        self.part_bytes: int | None = None  # larger files are asked for in parts of this size
        self._parts: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self.routes: list[tuple[str, str, Callable[..., Response]]] = [
            ("GET", "/api/whoami-v2", self.whoami),
            ("POST", "/api/validate-yaml", self.validate_yaml),
            ("POST", "/api/repos/create", self.create_repository),
            ("DELETE", "/api/repos/delete", self.delete_repository),
            ("GET", rf"{API_REPO}(?:/revision/{REVISION})?", self.repository_info),
            ("GET", rf"{API_REPO}/tree/{REVISION}(?:/(?P<path>.+))?", self.tree),
            ("POST", rf"{API_REPO}/paths-info/{REVISION}", self.paths_info),
            ("GET", rf"{API_REPO}/commits/{REVISION}", self.commits),
            ("GET", rf"{API_REPO}/refs", self.references),
            ("POST", rf"{API_REPO}/branch/(?P<name>[^/]+)", self.create_branch),
            ("POST", rf"{API_REPO}/tag/{REVISION}", self.create_tag),
            ("DELETE", rf"{API_REPO}/(?P<kind>branch|tag)/(?P<name>[^/]+)", self.delete_reference),
            ("POST", rf"{API_REPO}/preupload/{REVISION}", self.preupload),
            ("POST", rf"{API_REPO}/commit/{REVISION}", self.commit),
            ("PUT", rf"{API_REPO}/settings", self.change_settings),
            ("POST", rf"{FILES_REPO}\.git/info/lfs/objects/batch", self.lfs_batch),
            ("POST", rf"{FILES_REPO}\.git/info/lfs/objects/verify", self.lfs_verify),
            ("GET", rf"{FILES_REPO}/resolve/{REVISION}/(?P<path>.+)", self.resolve),
        ]

    def answer(self, request: Request) -> Response:
        """Finds the route; a HEAD request is a GET request whose body is not sent."""
        method = "GET" if request.method == "HEAD" else request.method
        for route_method, pattern, handler in self.routes:
            match = re.fullmatch(pattern, request.path) if route_method == method else None
            if match is not None:
                return handler(request, **{key: unquote(value) for key, value in match.groupdict().items() if value})
        raise HubError(404, f"The test Hub does not serve {request.method} {request.path}")

    def answer_storage(self, request: Request) -> Response:
        """Serves /lfs/<sha256>, as a bucket does: pre-signed addresses, which no token must ever reach."""
        sha256, _, part = request.path.removeprefix("/lfs/").partition("/")
        if request.authorization is not None:
            raise HubError(400, "Only one auth mechanism allowed: a token was sent to the storage")
        if request.method == "PUT" and part:
            self._parts[f"{sha256}/{part}"] = content = request.body.read()
            return Response(headers={"ETag": hashlib.md5(content).hexdigest()})
        if request.method == "POST":
            parts = [self._parts.pop(f"{sha256}/{one['partNumber']}") for one in request.json()["parts"]]
            self.store.add(io.BytesIO(b"".join(parts)), sha256)
            return Response()
        if request.method == "PUT":
            self.store.add(request.body, sha256)
            return Response()
        if sha256 not in self.store:
            raise HubError(404, f"NoSuchKey: {sha256}")
        return Response(self.store.path(sha256), headers={"ETag": f'"{sha256}"'})

    def _repository(self, request: Request, repo_id: str, repo_type: RepoType = "model") -> Repository:
        return self.access.readable(request, self.repositories.get((repo_type, repo_id)))

    def _writable(self, request: Request, repo: dict[str, Any]) -> tuple[Repository, Account]:
        repository = self._repository(request, **repo)
        contributes = "create_pr" in request.query  # everybody may propose a change
        return repository, self.access.writer(request, None if contributes else repository.owner)

    # Account and card

    def whoami(self, request: Request) -> Response:
        account = self.access.member(request)
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": account.access}}
        return Response.of_json({"type": "user", "name": account.user, "orgs": [], "auth": token})

    def validate_yaml(self, request: Request) -> Response:
        card = check_card(request.json()["content"])
        problems = {
            "errors": [{"message": message} for message in card.errors],
            "warnings": [{"message": message} for message in card.warnings],
        }
        return Response.of_json(problems, 400 if card.errors else 200)

    # Repositories

    def create_repository(self, request: Request) -> Response:
        asked = request.json()
        repo_type: RepoType = asked.get("type", "model")
        account = self.access.writer(request, asked.get("organization"))
        repo_id = f"{account.user}/{asked['name']}"
        content = {"name": repo_id, "url": self._page(repo_type, repo_id)}
        with self._lock:
            if (repo_type, repo_id) in self.repositories:
                error = {"error": f"You already created this {repo_type} repo"}
                return Response.of_json({**content, **error}, 409)
            private = asked.get("visibility") == "private"
            self.repositories[repo_type, repo_id] = Repository(repo_id, repo_type, private, self.store)
        return Response.of_json(content)

    def delete_repository(self, request: Request) -> Response:
        asked = request.json()
        account = self.access.writer(request, asked.get("organization"))
        repository = self._repository(request, f"{account.user}/{asked['name']}", asked.get("type", "model"))
        with self._lock:
            self.repositories.pop((repository.type, repository.id), None)
        return Response()

    def change_settings(self, request: Request, **repo: Any) -> Response:
        repository, _ = self._writable(request, repo)
        asked = request.json()
        if set(asked) - {"visibility"}:
            raise HubError(400, f"The test Hub only knows the setting visibility, not {sorted(asked)}")
        repository.private = asked["visibility"] == "private"
        return Response.of_json({"private": repository.private})

    def _page(self, repo_type: RepoType, repo_id: str) -> str:
        return f"{self.url}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id}"

    # Contents

    def repository_info(self, request: Request, revision: str = "main", **repo: Any) -> Response:
        repository = self._repository(request, **repo)
        commit = repository.resolve(revision)
        card = check_card(self._text(commit, "README.md")).metadata
        config = json.loads(self._text(commit, "config.json") or "{}")
        info = {
            "id": repository.id,
            "modelId": repository.id,
            "author": repository.owner,
            "sha": commit.oid,
            "createdAt": repository.created.date,
            "lastModified": commit.date,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "tags": card.get("tags", []),
            "cardData": card,
            "siblings": [_sibling(path, entry, "blobs" in request.query) for path, entry in commit.files.items()],
            "config": {key: config[key] for key in ("architectures", "auto_map", "model_type") if key in config},
        }
        return Response.of_json(info | {key: card[key] for key in ("library_name", "pipeline_tag") if key in card})

    def _text(self, commit: Commit, path: str) -> str:
        entry = commit.files.get(path)
        return "" if entry is None else self.store.path(entry.sha256).read_text()

    def tree(self, request: Request, revision: str, path: str = "", **repo: Any) -> Response:
        commit = self._repository(request, **repo).resolve(revision)
        prefix = f"{path}/" if path else ""
        infos: dict[str, dict[str, Any]] = {}
        for name, entry in commit.files.items():
            if name.startswith(prefix):
                folders = [str(folder) for folder in PurePosixPath(name).parents if str(folder).startswith(prefix)]
                infos |= {folder: _folder_info(folder) for folder in folders if folder != "."}
                infos[name] = _file_info(name, entry)
        if path and not infos:
            raise entry_not_found(path, commit.oid)
        recursive = request.query.get("recursive", "").lower() == "true"
        return Response.of_json([infos[name] for name in sorted(infos) if recursive or "/" not in name[len(prefix) :]])

    def paths_info(self, request: Request, revision: str, **repo: Any) -> Response:
        commit = self._repository(request, **repo).resolve(revision)
        paths = parse_qs(request.body.read().decode()).get("paths", [])
        return Response.of_json([_file_info(path, commit.files[path]) for path in paths if path in commit.files])

    def resolve(self, request: Request, revision: str, path: str, **repo: Any) -> Response:
        commit, entry = self._repository(request, **repo).entry(revision, path)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{entry.etag}"'}
        if not entry.lfs:
            return Response(self.store.path(entry.sha256), headers=headers)
        headers["X-Linked-Etag"] = headers["ETag"]
        headers["X-Linked-Size"] = str(entry.size)
        headers["Location"] = f"{self.storage_url}/lfs/{entry.sha256}"
        return Response(status=302, headers=headers)

    # History and references

    def commits(self, request: Request, revision: str, **repo: Any) -> Response:
        history = self._repository(request, **repo).history(revision)
        return Response.of_json([_commit_info(commit) for commit in history])

    def references(self, request: Request, **repo: Any) -> Response:
        references = dict(self._repository(request, **repo).references)
        listed: dict[str, Any] = {"converts": []}
        for key, prefix in (("branches", "refs/heads/"), ("tags", "refs/tags/"), ("pullRequests", "refs/pr/")):
            listed[key] = [
                {"name": reference.removeprefix(prefix), "ref": reference, "targetCommit": oid}
                for reference, oid in references.items()
                if reference.startswith(prefix)
            ]
        return Response.of_json(listed)

    def create_branch(self, request: Request, name: str, **repo: Any) -> Response:
        repository, _ = self._writable(request, repo)
        repository.add_reference(f"refs/heads/{name}", request.json().get("startingPoint", "main"))
        return Response()

    def create_tag(self, request: Request, revision: str, **repo: Any) -> Response:
        repository, _ = self._writable(request, repo)
        repository.add_reference(f"refs/tags/{request.json()['tag']}", revision)
        return Response()

    def delete_reference(self, request: Request, kind: str, name: str, **repo: Any) -> Response:
        repository, _ = self._writable(request, repo)
        repository.delete_reference(f"refs/{'heads' if kind == 'branch' else 'tags'}/{name}")
        return Response()

    # Uploads, in the order of the protocol

    def preupload(self, request: Request, revision: str, **repo: Any) -> Response:
        repository, _ = self._writable(request, repo)
        body = request.json()
        if "gitIgnore" in body:
            raise HubError(501, "The test Hub does not apply .gitignore")
        present = repository.resolve(revision).files
        files = [
            {
                "path": asked["path"],
                "uploadMode": repository.upload_mode(revision, asked["path"], asked["size"]),
                "shouldIgnore": False,
                "oid": present[asked["path"]].etag if asked["path"] in present else None,
            }
            for asked in body["files"]
        ]
        return Response.of_json({"files": files})

    def lfs_batch(self, request: Request, **repo: Any) -> Response:
        repository = self._repository(request, **repo)
        self.access.writer(request)
        verify = f"{self._page(repository.type, repository.id)}.git/info/lfs/objects/verify"
        objects = []
        for asked in request.json()["objects"]:
            upload: dict[str, Any] = {"href": f"{self.storage_url}/lfs/{asked['oid']}"}
            if self.part_bytes is not None and asked["size"] > self.part_bytes:
                numbers = range(1, -(-asked["size"] // self.part_bytes) + 1)
                parts = {str(number): f"{upload['href']}/{number}" for number in numbers}
                upload["header"] = {"chunk_size": str(self.part_bytes), **parts}
            actions = {} if asked["oid"] in self.store else {"actions": {"upload": upload, "verify": {"href": verify}}}
            objects.append({"oid": asked["oid"], "size": asked["size"], **actions})
        return Response.of_json({"transfer": "basic", "objects": objects})

    def lfs_verify(self, request: Request, **repo: Any) -> Response:
        self._repository(request, **repo)
        self.access.writer(request)
        asked = request.json()
        if self.store.lfs_entry(asked["oid"]).size != asked["size"]:
            raise HubError(422, f"LFS object {asked['oid']} does not have {asked['size']} bytes")
        return Response()

    def commit(self, request: Request, revision: str, **repo: Any) -> Response:
        repository, account = self._writable(request, repo)
        lines = (json.loads(line) for line in request.body if line.strip())
        page = self._page(repository.type, repository.id)
        if "create_pr" in request.query:
            commit, number = repository.open_pull_request(revision, lines, account.user)
            links = {"pullRequestUrl": f"{page}/discussions/{number}"}
        else:
            commit, links = repository.commit(revision, lines, account.user), {}
        return Response.of_json({"commitOid": commit.oid, "commitUrl": f"{page}/commit/{quote(commit.oid)}", **links})


def _file_info(path: str, entry: FileEntry) -> dict[str, Any]:
    info: dict[str, Any] = {"type": "file", "path": path, "oid": entry.blob_id, "size": entry.size}
    if entry.lfs:
        info["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    return info


def _folder_info(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}


def _sibling(path: str, entry: FileEntry, with_blobs: bool) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": path}
    if with_blobs:
        sibling |= {"size": entry.size, "blobId": entry.blob_id}
        if entry.lfs:
            sibling["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    return sibling


def _commit_info(commit: Commit) -> dict[str, Any]:
    texts = {"title": commit.title, "message": commit.message, "date": commit.date}
    return {"id": commit.oid, "authors": [{"user": commit.author}], **texts}
