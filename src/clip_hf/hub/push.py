"""Files to a repository on the Hub: what of them has changed there, one commit, and what to do when that fails.

Every attempt begins by comparing the files with those of the repository. So what has arrived is not sent again, and a
commit whose answer was lost on the way is not made twice.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_session
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import CommitInfo, ModelInfo
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, validate_repo_id

from clip_hf.hub.failures import MOST_SILENT_SECONDS, PushError, checked_token, explained, retry, status_of
from clip_hf.hub.files import PAGE, Content
from clip_hf.model_card.page import is_by_hand

_WEIGHTS = r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
# The paths in a repository where the readers of a format look for its weights.
WEIGHTS = {"clip_hf": _WEIGHTS, "transformers": f"transformers/{_WEIGHTS}", "open_clip": f"open_clip_{_WEIGHTS}"}


@dataclass(frozen=True)
class Destination:
    """Where a model goes.

    Args:
        repo_id: NAMESPACE/NAME.
        revision: the branch, made where it is missing; "main" by default.
        private: make the repository private, if it is new.
        tag: a name for the state that the push leaves.
        create_pr: propose the change to the repository's owner instead.
        replace_page: put ours in the place of a page that somebody has written on the Hub.
        token: that may write; by default the one of this machine.

    Raises:
        ValueError: the options exclude each other, or the name or the token is not one.
    """

    repo_id: str
    revision: str | None = None
    private: bool = False
    tag: str | None = None
    create_pr: bool = False
    replace_page: bool = False
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Checks what can be known without the Hub."""
        validate_repo_id(self.repo_id)
        if "/" not in self.repo_id:
            raise ValueError(f"repo_id is '{self.repo_id}', but must be NAMESPACE/NAME, such as me/{self.repo_id}")
        if self.create_pr and (self.revision or self.tag):
            raise ValueError("create_pr proposes a change of the main branch: leave out revision and tag")
        object.__setattr__(self, "token", checked_token(self.token))

    @property
    def branch(self) -> str:
        """The branch that the push changes."""
        return self.revision or constants.DEFAULT_REVISION

    @property
    def api(self) -> HfApi:
        """The Hub, as the token opens it."""
        return HfApi(token=self.token)


@dataclass
class Plan:
    """What a push will do.

    Args:
        destination: where to.
        files: all files of the model, by their path in the repository.
        added: paths that are new there.
        changed: paths whose content is another there.
        deleted: paths of weights over there that would be loaded instead of, or beside, the new ones.
        kept: paths of what somebody has written over there, which stays as it is.
        head: the state that this was compared with; None where there is no repository yet.
    """

    destination: Destination
    files: Mapping[str, Content]
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    head: str | None = None

    @property
    def sent(self) -> list[str]:
        """Paths whose content goes over the wire."""
        return sorted(self.added + self.changed)

    def __str__(self) -> str:
        place = f"{self.destination.repo_id}, {self.destination.branch}"
        lines = [f"{place}{'' if self.head else ' (a new repository)'}:"]
        kinds = {path: "new" for path in self.added} | {path: "changed" for path in self.changed}
        kinds |= {path: "kept" for path in self.kept}
        for path, content in sorted(self.files.items()):
            lines.append(f"  {kinds.get(path, 'unchanged'):10}{_in_bytes(_size(content)):>10}  {path}")
        lines += [f"  {'deleted':10}{'':>10}  {path}" for path in self.deleted]
        lines += [f"  {path} there was written by hand, and stays: replace_page replaces it" for path in self.kept]
        size = sum(_size(self.files[path]) for path in self.sent)
        return "\n".join([*lines, f"{len(self.sent)} of {len(self.files)} files to send, {_in_bytes(size)}."])


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _in_bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


@dataclass(frozen=True)
class Pushed:
    """Where the model is now: its page, its name, and the revision to load unless it is the main branch."""

    url: str
    repo_id: str
    revision: str | None

    def usage(self, with_code: bool) -> str:
        """Returns the three lines that open the model, with the code of its repository or with `clip_hf`."""
        options = f'"{self.repo_id}"' + (f', revision="{self.revision}"' if self.revision else "")
        package, prefix = ("transformers", "Auto") if with_code else ("clip_hf", "ClipHf")
        options += ", trust_remote_code=True" if with_code else ""
        return (
            f"from {package} import {prefix}Model, {prefix}Processor\n"
            f"model = {prefix}Model.from_pretrained({options})\n"
            f"processor = {prefix}Processor.from_pretrained({options})"
        )


def plan_push(destination: Destination, files: Mapping[str, Content]) -> Plan:
    """Returns what pushing the files would do; it only reads.

    Args:
        destination: where to.
        files: by their path in the repository.

    Raises:
        PushError: the Hub cannot be read, or what is there excludes the push.
    """
    with explained(destination.repo_id, destination.token):
        return retry(lambda: _compare(destination, files))


def _compare(destination: Destination, files: Mapping[str, Content]) -> Plan:
    info = _state(destination)
    if info is None:
        if destination.create_pr:
            raise PushError(f"There is no {destination.repo_id} to propose a change to: push without create_pr")
        return Plan(destination, files, added=sorted(files))
    _refuse_public(destination, info)
    _refuse_leftovers(destination, info, files)
    return _compare_with(info, destination, files)


def require_private(destination: Destination) -> None:
    """Raises PushError where the repository is to be private, and is there and public."""
    with explained(destination.repo_id, destination.token):
        if (info := retry(lambda: _state(destination))) is not None:
            _refuse_public(destination, info)


def _refuse_public(destination: Destination, info: ModelInfo) -> None:
    if destination.private and not info.private:
        raise PushError(
            f"{destination.repo_id} exists and is public, and private is for new repositories: change that in its "
            "settings, or choose another name"
        )


def _refuse_leftovers(destination: Destination, info: ModelInfo, files: Mapping[str, Content]) -> None:
    """Raises PushError where weights of another format would stay: of another model, and not on the page any more."""
    present = [sibling.rfilename for sibling in info.siblings or []]
    sent = [name for name, pattern in WEIGHTS.items() if _matching(pattern, files)]
    left = {
        name: paths for name, pattern in WEIGHTS.items() if name not in sent and (paths := _matching(pattern, present))
    }
    if left:
        raise PushError(
            f"{destination.repo_id} also holds the weights of {' and '.join(left)}, which would stay as they are: "
            f"push these formats, too (`--formats {','.join([*sent, *left])}`), or delete there "
            f"{', '.join(path for paths in left.values() for path in paths)}"
        )


def _compare_with(info: ModelInfo, destination: Destination, files: Mapping[str, Content]) -> Plan:
    present = {sibling.rfilename: sibling for sibling in info.siblings or []}
    replaced = [pattern for pattern in WEIGHTS.values() if _matching(pattern, files)]
    deleted = [path for pattern in replaced for path in _matching(pattern, present) if path not in files]
    plan = Plan(destination, files, deleted=deleted, head=info.sha)
    for path, content in files.items():
        if path not in present:
            plan.added.append(path)
        elif _is_same(content, present[path]):
            continue
        elif path == PAGE and _keeps_page(destination, content, info):
            plan.kept.append(path)
        else:
            plan.changed.append(path)
    return plan


def _matching(pattern: str, paths: Iterable[str]) -> list[str]:
    return [path for path in paths if re.fullmatch(pattern, path)]


def _keeps_page(destination: Destination, page: Content, info: ModelInfo) -> bool:
    """Whether ours would take the place of a page by hand; one by hand that is here may."""
    if destination.replace_page or is_by_hand(page.decode() if isinstance(page, bytes) else page.read_text("utf-8")):
        return False
    url = f"{destination.api.endpoint}/{destination.repo_id}/resolve/{info.sha}/{PAGE}"
    response = get_session().get(url, headers=build_hf_headers(token=destination.token), follow_redirects=True)
    hf_raise_for_status(response)
    return is_by_hand(response.text)


def _state(destination: Destination) -> ModelInfo | None:
    api, repo_id = destination.api, destination.repo_id
    options: dict[str, Any] = {"files_metadata": True, "timeout": MOST_SILENT_SECONDS}
    try:
        return api.model_info(repo_id, revision=destination.branch, **options)
    except RevisionNotFoundError:  # a branch that is not there yet begins as a copy of main
        return api.model_info(repo_id, **options)
    except RepositoryNotFoundError:
        return None


def _is_same(content: Content, sibling: Any) -> bool:
    """Whether the content is that of the repository, which knows large files by SHA-256 and others as git does."""
    digest = hashlib.sha256() if sibling.lfs else hashlib.sha1(b"blob %d\0" % _size(content))
    if isinstance(content, bytes):
        digest.update(content)
    else:
        with content.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest() == (sibling.lfs.sha256 if sibling.lfs else sibling.blob_id)


def push(plan: Plan, message: str = "Upload a CLIP model") -> Pushed:
    """Makes the repository and the branch, where they are missing, and one commit of what has changed.

    Args:
        plan: from `plan_push`.
        message: of the commit: a line and, behind an empty one, a description.

    Raises:
        PushError: it did not succeed.
    """
    destination, files = plan.destination, plan.files
    api, repo_id, branch = destination.api, destination.repo_id, destination.branch
    with explained(repo_id, destination.token):
        if plan.head is None:
            retry(lambda: api.create_repo(repo_id, private=destination.private, exist_ok=True))
        if not branch.startswith("refs/") and branch != constants.DEFAULT_REVISION:
            retry(lambda: api.create_branch(repo_id, branch=branch, exist_ok=True))
        tag_exists = destination.tag is not None and retry(lambda: _has_tag(destination, files))
        commit = retry(lambda: _commit(destination, files, message))
        if destination.tag is not None and not tag_exists:
            tag, oid = destination.tag, commit.oid
            retry(lambda: api.create_tag(repo_id, tag=tag, revision=oid, exist_ok=True))
    if commit.pr_url is not None:
        return Pushed(commit.pr_url, repo_id, commit.pr_revision)
    revision = destination.tag or destination.revision
    return Pushed(f"{api.endpoint}/{repo_id}" + (f"/tree/{revision}" if revision else ""), repo_id, revision)


def _has_tag(destination: Destination, files: Mapping[str, Content]) -> bool:
    """Whether the tag is there, for this very state."""
    if destination.tag not in {tag.name for tag in destination.api.list_repo_refs(destination.repo_id).tags}:
        return False
    options: dict[str, Any] = {"files_metadata": True, "timeout": MOST_SILENT_SECONDS}
    tagged = destination.api.model_info(destination.repo_id, revision=destination.tag, **options)
    if not _compare_with(tagged, destination, files).sent:
        return True
    raise PushError(
        f"{destination.repo_id} has a tag '{destination.tag}' of another state: choose another tag. Nothing was sent"
    )


def _commit(destination: Destination, files: Mapping[str, Content], message: str) -> CommitInfo:
    """Sends what differs; where nothing does, huggingface_hub gives the commit that is there."""
    plan = _compare(destination, files)
    api, repo_id, branch = destination.api, destination.repo_id, destination.branch
    additions = [CommitOperationAdd(path, files[path]) for path in plan.sent]
    options: dict[str, Any] = {"revision": branch, "create_pr": destination.create_pr}
    api.preupload_lfs_files(repo_id, additions, free_memory=False, **options)
    try:
        operations: list[CommitOperationAdd | CommitOperationDelete] = [*additions]
        operations += [CommitOperationDelete(path) for path in plan.deleted]
        summary, _, description = message.partition("\n\n")
        return api.create_commit(
            repo_id,
            operations,
            commit_message=summary,
            commit_description=description,
            parent_commit=plan.head,
            **options,
        )
    except HTTPError as error:
        if destination.create_pr and status_of(error) not in {400, 401, 403, 404, 412, 429}:
            raise PushError(
                f"The answer to the proposal was lost, so it may have been made: look at {api.endpoint}/{repo_id}"
                "/discussions before you run this again"
            ) from error
        raise
