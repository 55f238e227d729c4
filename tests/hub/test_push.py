"""Pushes to the test Hub, and what becomes of them when it, the line or the token fails."""

import contextlib
import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import CommitOperationDelete, HfApi
from transformers.utils import logging

from clip_hf import ClipHfModel, ClipHfProcessor
from clip_hf.hub.failures import AGAIN, MOST_WAIT_SECONDS, WAIT_SECONDS, PushError
from clip_hf.hub.files import collected_files
from clip_hf.hub.push import Destination, Pushed, plan_push, push
from tests.hub.conftest import save_checkpoint
from tests.hub.hub_server import Delay, Disconnection, Refusal, matching

WEIGHTS = "model.safetensors"


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.fixture(autouse=True)
def secrets_and_files_are_safe(this_process_uses_hub, hub, checkpoint, caplog, capfd):
    """Whatever happens in a test, the folder stays as it is, and the token is neither printed, logged nor sent."""
    before = digests(checkpoint)
    logging.enable_propagation()
    yield
    logging.disable_propagation()
    assert digests(checkpoint) == before
    printed = capfd.readouterr()
    assert hub.token not in caplog.text + printed.out + printed.err
    assert not any(hub.token.encode() in content for content in hub.contents())


def push_folder(folder: Path, repo_id: str, with_code: bool = False, formats=("clip_hf",), **options) -> Pushed:
    with collected_files(folder, repo_id, with_code, formats) as files:
        return push(plan_push(Destination(repo_id, **options), files))


def assert_complete(hub, folder: Path, repo_id: str, num_commits: int = 2, revision: str = "main") -> None:
    """The repository holds the folder's files, after the first commit, which made it, and one of ours."""
    repository = hub.repository(repo_id)
    assert len(repository.history(revision)) == num_commits
    for name in (WEIGHTS, "tokenizer.json"):
        assert repository.read(name, revision) == (folder / name).read_bytes()
    assert repository.read("README.md", revision).startswith(b"---\n")


def refused(folder: Path, repo_id: str, match: str, **options) -> str:
    with pytest.raises(PushError, match=match) as error:
        push_folder(folder, repo_id, **options)
    return str(error.value)


def test_a_second_push_sends_what_has_changed(hub, checkpoint, tmp_path):
    pushed = push_folder(checkpoint, "tester/twice")
    assert pushed == Pushed(f"{hub.url}/tester/twice", "tester/twice", None)
    assert_complete(hub, checkpoint, "tester/twice")
    with hub.recording() as exchanges:
        assert push_folder(checkpoint, "tester/twice") == pushed
    assert {exchange.method for exchange in exchanges} == {"GET"}

    folder = tmp_path / "changed"
    shutil.copytree(checkpoint, folder)
    (folder / "card.json").write_text('{"license": "mit"}')
    with collected_files(folder, "tester/twice") as files:
        plan = plan_push(Destination("tester/twice"), files)
    assert (plan.added, plan.changed, plan.deleted) == (["card.json"], ["README.md"], [])
    assert f"2 of {len(files)} files to send" in str(plan) and "unchanged" in str(plan)
    with hub.recording() as exchanges:
        push_folder(folder, "tester/twice")
    assert not matching(exchanges, "PUT") and b"license: mit" in hub.repository("tester/twice").read("README.md")
    assert_complete(hub, checkpoint, "tester/twice", num_commits=3)


def test_a_page_by_hand_on_the_hub_stays_unless_it_is_to_be_replaced(hub, checkpoint, tmp_path):
    push_folder(checkpoint, "tester/edited")
    ours = hub.repository("tester/edited").read("README.md")
    theirs = b"---\nlicense: mit\n---\n# By hand\n"
    HfApi().upload_file(path_or_fileobj=theirs, path_in_repo="README.md", repo_id="tester/edited")
    with collected_files(checkpoint, "tester/edited") as files:
        plan = plan_push(Destination("tester/edited"), files)
    assert (plan.kept, plan.sent) == (["README.md"], [])
    assert "README.md there was written by hand" in str(plan) and "replace_page replaces it" in str(plan)
    with hub.fault(Refusal(status=500), path="/resolve/.*README", times=1) as fault:
        push_folder(checkpoint, "tester/edited", with_code=True, tag="v1")
    assert fault.hits == 1 and hub.repository("tester/edited").read("README.md", "v1") == theirs
    push_folder(checkpoint, "tester/edited", with_code=True, tag="v1")  # it is still the tagged state

    push_folder(checkpoint, "tester/edited", replace_page=True)
    assert hub.repository("tester/edited").read("README.md") == ours
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / "README.md").write_bytes(theirs)
    HfApi().upload_file(path_or_fileobj=b"other", path_in_repo="README.md", repo_id="tester/edited")
    push_folder(folder, "tester/edited")  # by hand here, too
    assert hub.repository("tester/edited").read("README.md") == theirs


def test_a_commit_has_its_description(hub, checkpoint):
    model = ClipHfModel.from_pretrained(checkpoint)
    model.push_to_hub("tester/described", commit_message="A summary", commit_description="And more of it.")
    (commit, *_) = HfApi().list_repo_commits("tester/described")
    assert (commit.title, commit.message) == ("A summary", "And more of it.")


def test_the_page_that_transformers_leaves_empty_is_replaced(hub, checkpoint):
    ClipHfProcessor.from_pretrained(checkpoint).push_to_hub("tester/emptypage")
    assert b"More Information Needed" in hub.repository("tester/emptypage").read("README.md")
    push_folder(checkpoint, "tester/emptypage")
    assert b"More Information Needed" not in hub.repository("tester/emptypage").read("README.md")


def test_a_plan_shows_what_goes_and_asks_only(hub, checkpoint):
    with hub.recording() as exchanges, collected_files(checkpoint, "tester/planned") as files:
        printed = str(plan_push(Destination("tester/planned"), files))
    assert {exchange.method for exchange in exchanges} == {"GET"}
    assert printed.startswith("tester/planned, main (a new repository):\n")
    assert f"{(checkpoint / WEIGHTS).stat().st_size / 1000:.1f} kB  {WEIGHTS}" in printed
    assert f"{len(files)} of {len(files)} files to send" in printed


def test_too_many_requests_are_waited_for(hub, checkpoint, this_process_uses_hub):
    refusal = Refusal(status=429, retry_after_seconds=7)
    for method, path in (("GET", "/models/"), ("POST", "/create"), ("PUT", "/lfs/"), ("POST", "/commit/")):
        repo_id = f"tester/limited-{path.strip('/')}"
        with hub.fault(refusal, method, path, times=1) as fault:
            save_checkpoint_of_its_own(checkpoint, repo_id)
        assert fault.hits == 1 and sum(this_process_uses_hub) >= 7
        this_process_uses_hub.clear()
    with hub.fault(Refusal(429, retry_after_seconds=int(MOST_WAIT_SECONDS) + 1), path="/commit/", times=None) as fault:
        message = refused(checkpoint, "tester/limited", "too many requests: wait for 601 seconds")
    assert fault.hits == 1 and AGAIN in message
    push_folder(checkpoint, "tester/limited")
    assert_complete(hub, checkpoint, "tester/limited")


def save_checkpoint_of_its_own(checkpoint: Path, repo_id: str) -> None:
    """Pushes weights that the Hub does not hold yet: content that it knows is not sent at all."""
    folder = checkpoint.parent / repo_id.replace("/", "-")
    torch.manual_seed(len(list(checkpoint.parent.iterdir())))
    save_checkpoint(folder)
    push_folder(folder, repo_id)


@pytest.mark.parametrize("path", ["/api/models/tester/failing", "/repos/create", "/preupload/", "/commit/"])
def test_failures_of_the_hub_are_outwaited(hub, checkpoint, path, this_process_uses_hub):
    repo_id = f"tester/failing{path.count('/')}{len(path)}"
    with hub.fault(Refusal(status=500), path=path, times=3) as fault:
        push_folder(checkpoint, repo_id)
    assert fault.hits == 3 and len(this_process_uses_hub) >= 3
    assert_complete(hub, checkpoint, repo_id)


def test_a_hub_that_fails_for_good_is_explained_and_a_second_run_completes(hub, checkpoint):
    with hub.fault(Refusal(status=503), path="/commit/", times=None) as fault:
        message = refused(checkpoint, "tester/doomed", "The Hub answered 503, several times over")
    assert fault.hits == 1 + len(WAIT_SECONDS) and AGAIN in message
    assert WEIGHTS not in hub.repository("tester/doomed").resolve("main").files
    with hub.recording() as exchanges:
        push_folder(checkpoint, "tester/doomed")
    assert not matching(exchanges, "PUT")  # the weights have arrived the first time
    assert_complete(hub, checkpoint, "tester/doomed")


def test_a_connection_that_breaks_in_the_weights(hub, tmp_path):
    torch.manual_seed(1)
    save_checkpoint(tmp_path)
    size = (tmp_path / WEIGHTS).stat().st_size
    cut = Disconnection(size // 2, "upload")
    with hub.fault(cut, "PUT", times=1), hub.recording() as exchanges:
        push_folder(tmp_path, "tester/cut")
    assert [put.received_bytes for put in matching(exchanges, "PUT", "/lfs/")] == [size // 2, size]
    assert_complete(hub, tmp_path, "tester/cut")

    torch.manual_seed(2)
    save_checkpoint(tmp_path)
    with hub.fault(cut, "PUT", times=None):
        message = refused(tmp_path, "tester/cut", r"The connection failed \(\w+\), several times over")
    assert AGAIN in message
    push_folder(tmp_path, "tester/cut")
    assert_complete(hub, tmp_path, "tester/cut", num_commits=3)


@pytest.mark.parametrize("part_bytes", [None, 4 * 2**20])
def test_a_connection_that_breaks_in_a_large_file(hub, tmp_path, part_bytes):
    """More than 10 MB, in one piece and in parts: of these only the one that broke is sent again."""
    repo_id = f"tester/large-{part_bytes}"
    torch.manual_seed(part_bytes or 3)
    save_checkpoint(tmp_path, text_width=512)
    size = (tmp_path / WEIGHTS).stat().st_size
    assert size > 12 * 2**20
    whole = [size] if part_bytes is None else [part_bytes] * 3 + [size - 3 * part_bytes]
    broken = 0 if part_bytes is None else 2
    cut = Disconnection(whole[broken] // 2, "upload")
    path = "/lfs/" if part_bytes is None else "/lfs/.*/3"
    with hub.asking_for_parts(part_bytes) if part_bytes else contextlib.nullcontext():
        with hub.fault(cut, "PUT", path, times=None) as fault:
            message = refused(tmp_path, repo_id, r"The connection failed \(\w+\), several times over")
        assert fault.hits > len(WAIT_SECONDS) and AGAIN in message
        with hub.fault(cut, "PUT", path, times=1), hub.recording() as exchanges:
            push_folder(tmp_path, repo_id)
    puts = [put.received_bytes for put in matching(exchanges, "PUT", "/lfs/")]
    assert puts == [*whole[:broken], cut.after_bytes, *whole[broken:]]
    assert_complete(hub, tmp_path, repo_id)


def test_a_hub_that_stops_answering_is_not_waited_for_forever(hub, checkpoint, monkeypatch):
    for module in ("failures", "push"):
        monkeypatch.setattr(f"clip_hf.hub.{module}.MOST_SILENT_SECONDS", 0.3)
    with hub.fault(Delay(seconds=1), path="/commit/", times=1) as fault, hub.recording() as exchanges:
        push_folder(checkpoint, "tester/silent")
    assert fault.hits == 1 and len(matching(exchanges, "POST", "/commit/")) >= 2
    assert_complete(hub, checkpoint, "tester/silent")
    with hub.fault(Delay(seconds=1), path="/api/models/tester/silent", times=None):
        message = refused(checkpoint, "tester/silent", r"The connection failed \(ReadTimeout\), several times over")
    assert AGAIN in message


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, checkpoint):
    with hub.fault(Disconnection(0, "download"), path="/commit/") as fault, hub.recording() as exchanges:
        push_folder(checkpoint, "tester/lost")
    assert fault.hits == 1 and len(matching(exchanges, "POST", "/commit/")) == 1
    assert_complete(hub, checkpoint, "tester/lost")


def test_a_proposal_whose_answer_is_lost_is_not_made_twice(hub, checkpoint):
    HfApi().create_repo("tester/proposed")
    with hub.fault(Disconnection(0, "download"), path="/commit/") as fault:
        message = refused(checkpoint, "tester/proposed", "may have been made", create_pr=True)
    assert fault.hits == 1 and f"{hub.url}/tester/proposed/discussions" in message
    refs = HfApi().list_repo_refs("tester/proposed", include_pull_requests=True)
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1"]
    assert_complete(hub, checkpoint, "tester/proposed", revision="refs/pr/1")
    assert len(hub.repository("tester/proposed").history()) == 1


def test_a_commit_by_somebody_else_meanwhile_is_kept(hub, checkpoint, monkeypatch):
    """It comes between comparing and committing, so the first attempt is refused, and the second sees it."""
    HfApi().create_repo("tester/shared")
    upload = HfApi.preupload_lfs_files
    others = iter([b"theirs"])

    def upload_while_somebody_commits(api, *args, **kwargs):
        upload(api, *args, **kwargs)
        for content in others:
            monkeypatch.setattr(HfApi, "preupload_lfs_files", upload)
            api.upload_file(path_or_fileobj=content, path_in_repo="theirs.txt", repo_id="tester/shared")

    monkeypatch.setattr(HfApi, "preupload_lfs_files", upload_while_somebody_commits)
    with hub.recording() as exchanges:
        push_folder(checkpoint, "tester/shared")
    assert [commit.status for commit in matching(exchanges, "POST", "/commit/")] == [200, 412, 200]
    assert hub.repository("tester/shared").read("theirs.txt") == b"theirs"
    assert_complete(hub, checkpoint, "tester/shared", num_commits=3)


def test_a_slow_hub_is_waited_for(hub, checkpoint):
    with hub.fault(Delay(seconds=0.3), path="tester/slow|/lfs/|create", times=None) as fault:
        push_folder(checkpoint, "tester/slow")
    assert fault.hits >= 4
    assert_complete(hub, checkpoint, "tester/slow")


def test_a_token_that_expires_or_may_not_write(hub, checkpoint, monkeypatch):
    with hub.restrict_token("expired"):
        assert "hf auth login" in refused(checkpoint, "tester/token", "has expired")
    with hub.restrict_token("read"):
        assert "write access" in refused(checkpoint, "tester/token", "may not write to tester/token")
    with monkeypatch.context() as context:
        context.setenv("HF_TOKEN", "")
        context.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent")
        assert "HF_TOKEN" in refused(checkpoint, "tester/token", "There is no token")
    with pytest.raises(KeyError):
        hub.repository("tester/token")
    push_folder(checkpoint, "tester/token")
    assert_complete(hub, checkpoint, "tester/token")


def test_a_token_that_expires_in_between(hub, checkpoint):
    with hub.fault(Refusal(status=401), path="/commit/", times=None) as fault:
        refused(checkpoint, "tester/lapsed", "has expired")
    assert fault.hits == 1
    push_folder(checkpoint, "tester/lapsed")
    assert_complete(hub, checkpoint, "tester/lapsed")


def test_a_repository_of_somebody_else_takes_proposals_only(hub, checkpoint, monkeypatch):
    push_folder(checkpoint, "tester/theirs", with_code=True)
    guest = hub.add_account("guest", "write")
    monkeypatch.setenv("HF_TOKEN", guest)
    assert "create_pr" in refused(checkpoint, "tester/theirs", "may not write to tester/theirs")
    refused(checkpoint, "tester/none", "may not write to tester/none")
    refused(checkpoint, "tester/none", "There is no tester/none to propose a change to", create_pr=True)
    pushed = push_folder(checkpoint, "tester/theirs", create_pr=True)
    assert pushed == Pushed(f"{hub.url}/tester/theirs/discussions/1", "tester/theirs", "refs/pr/1")
    assert 'revision="refs/pr/1"' in pushed.usage(with_code=False)
    assert len(hub.repository("tester/theirs").history()) == 2
    assert b"trust_remote_code" not in hub.repository("tester/theirs").read("README.md", "refs/pr/1")


def test_private_is_kept_or_refused(hub, checkpoint):
    push_folder(checkpoint, "tester/hidden", private=True)
    push_folder(checkpoint, "tester/hidden", private=True)
    assert hub.repository("tester/hidden").private
    push_folder(checkpoint, "tester/open")
    with hub.recording() as exchanges:
        refused(checkpoint, "tester/open", "exists and is public", private=True)
    assert {exchange.method for exchange in exchanges} == {"GET"}


def test_branches_and_tags(hub, checkpoint):
    repository = "tester/versions"
    pushed = push_folder(checkpoint, repository, revision="dev", tag="v1")
    assert pushed.url == f"{hub.url}/{repository}/tree/v1"
    assert len(hub.repository(repository).history()) == 1
    assert_complete(hub, checkpoint, repository, revision="dev")
    assert hub.repository(repository).resolve("v1") == hub.repository(repository).resolve("dev")
    push_folder(checkpoint, repository, revision="dev", tag="v1")  # the same state again
    with hub.recording() as exchanges, pytest.raises(PushError, match="has a tag 'v1' of another state"):
        push_folder(checkpoint, repository, with_code=True, tag="v1")
    assert {exchange.method for exchange in exchanges} == {"GET"}
    with hub.fault(Disconnection(0, "download"), path="/tag/"):
        push_folder(checkpoint, repository, with_code=True, tag="v2")
    assert hub.repository(repository).resolve("v2") == hub.repository(repository).resolve("main")


def test_weights_that_would_be_loaded_instead_are_removed(hub, checkpoint, tmp_path):
    save_checkpoint(tmp_path, max_shard_size="100kB")
    assert len(list(tmp_path.glob("model-0*.safetensors"))) > 1
    push_folder(tmp_path, "tester/shards")
    assert "model.safetensors.index.json" in hub.repository("tester/shards").resolve("main").files
    push_folder(checkpoint, "tester/shards")
    weights = [name for name in hub.repository("tester/shards").resolve("main").files if name.startswith("model")]
    assert weights == [WEIGHTS]
    assert_complete(hub, checkpoint, "tester/shards", num_commits=3)


def test_weights_of_other_formats_do_not_stay_behind(hub, checkpoint):
    """They would be those of another model than the page's, for whoever opens that format."""
    formats = ("clip_hf", "transformers", "open_clip")
    push_folder(checkpoint, "tester/formats", formats=formats)
    for fewer, left in {formats[:1]: "transformers and open_clip", formats[:2]: "open_clip"}.items():
        with hub.recording() as exchanges:
            message = refused(checkpoint, "tester/formats", f"also holds the weights of {left}, which", formats=fewer)
        assert {exchange.method for exchange in exchanges} == {"GET"}
    assert "--formats clip_hf,transformers,open_clip" in message and "open_clip_model.safetensors" in message
    push_folder(checkpoint, "tester/formats", formats=formats, replace_page=True)
    operations = [CommitOperationDelete("transformers/", is_folder=True)]
    operations += [CommitOperationDelete("open_clip_model.safetensors")]
    HfApi().create_commit("tester/formats", operations, commit_message="Leave one")
    push_folder(checkpoint, "tester/formats")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"repo_id": "my-clip"}, "must be NAMESPACE/NAME, such as me/my-clip"),
        ({"repo_id": "me/my clip"}, "'me/my clip'"),
        ({"repo_id": "me/clip", "create_pr": True, "tag": "v1"}, "leave out revision and tag"),
        ({"repo_id": "me/clip", "create_pr": True, "revision": "dev"}, "leave out revision and tag"),
    ],
)
def test_destinations_that_are_none(options, problem):
    with pytest.raises(ValueError, match=problem):
        Destination(**options)


def test_offline_is_said(checkpoint, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(checkpoint, "tester/offline", "HF_HUB_OFFLINE is set")
