"""What is tried again on the way to the Hub and what is not, and how both are told."""

import contextlib
import traceback

import pytest
from huggingface_hub import HfApi, close_session, get_session
from huggingface_hub.utils import _http, httpx

from clip_hf.hub.failures import AGAIN, MOST_SILENT_SECONDS, WAIT_SECONDS, PushError, explained, retry
from clip_hf.hub.push import Destination
from tests.hub.hub_server import Refusal
from tests.hub.test_push import push_folder, refused
from tests.hub.test_trainer import make_trainer


def failing_uploads(monkeypatch, *errors: Exception) -> list[Exception]:
    """Lets uploads raise one error after the other, as hf_xet does, and returns those that are left."""
    left, upload = list(errors), HfApi.preupload_lfs_files

    def fail(*args, **kwargs):
        if left:
            raise left.pop(0)
        return upload(*args, **kwargs)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", fail)
    return left


@pytest.mark.parametrize("error", [ConnectionError("Network error"), TimeoutError("timed out")])
def test_uploads_by_xet_are_tried_again(error, hub, this_process_uses_hub, checkpoint, monkeypatch):
    failing_uploads(monkeypatch, error, error)
    push_folder(checkpoint, f"tester/xet-{type(error).__name__}")
    assert this_process_uses_hub[:2] == list(WAIT_SECONDS[:2])
    left = failing_uploads(monkeypatch, *[error] * 9)
    message = refused(checkpoint, "tester/xet", f"The connection failed .{type(error).__name__}., several times over")
    assert AGAIN in message and len(left) == 9 - 1 - len(WAIT_SECONDS)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (PermissionError("Authentication error"), "The token may not write to tester/once"),
        (OSError("disk quota exceeded"), "The upload failed: disk quota exceeded. Nothing was lost"),
        (PermissionError(13, "Permission denied", "a/model.safetensors"), "a/model.safetensors: Permission denied$"),
        (FileNotFoundError(2, "No such file or directory", "a/results.json"), "a/results.json: No such file"),
    ],
)
def test_what_does_not_pass_is_told_at_once(error, problem, hub, this_process_uses_hub, checkpoint, monkeypatch):
    failing_uploads(monkeypatch, *[error] * 9)
    refused(checkpoint, "tester/once", problem)
    assert this_process_uses_hub == []


def test_the_limits_of_the_hub_are_heeded(hub, this_process_uses_hub, checkpoint):
    """It names them in a header of its own, which counts before the usual one."""
    limit = Refusal(429, retry_after_seconds=3, rate_limit='"api";r=0;t=47')
    with hub.fault(limit, "GET", "/models/", times=1):
        push_folder(checkpoint, "tester/window")
    assert this_process_uses_hub == [47]


@pytest.mark.parametrize("token", ["{}\n", " {}\r\n"])
def test_white_space_around_a_token_is_no_part_of_it(token, hub, this_process_uses_hub, checkpoint, tmp_path):
    token = token.format(hub.token)
    assert Destination("tester/clip", token=token).token == hub.token
    trainer = make_trainer(checkpoint, tmp_path, push_to_hub=True, hub_model_id="tester/spaced", hub_token=token)
    trainer.train()
    trainer.push_to_hub(token=token)
    assert hub.repository("tester/spaced").read("results.json")
    assert not any(hub.token.encode() in content for content in hub.contents())


@pytest.mark.parametrize("token", ["hf_one hf_two", "hf_one\nhf_two", "hf_oné"])
def test_tokens_that_are_none_are_refused_and_not_shown(token, this_process_uses_hub, checkpoint, tmp_path):
    for take in (
        lambda: Destination("tester/clip", token=token),
        lambda: make_trainer(checkpoint, tmp_path, hub_token=token),
    ):
        with pytest.raises(ValueError, match="token has characters") as error:
            take()
        assert "hf_on" not in "".join(traceback.format_exception(error.value))
    assert this_process_uses_hub == []


def test_a_token_that_cannot_be_sent_is_not_shown(hub, this_process_uses_hub):
    with pytest.raises(PushError, match="token") as error, explained("tester/clip"):
        retry(lambda: get_session().get(hub.url, headers={"authorization": "Bearer hf_one\n"}))
    assert "hf_one" not in "".join(traceback.format_exception(error.value))
    assert this_process_uses_hub == []


def test_every_client_of_a_push_has_its_timeout(this_process_uses_hub, monkeypatch):
    """Also one that huggingface_hub makes anew; before and after, they are as its user wants them."""
    monkeypatch.setattr(_http, "_GLOBAL_CLIENT_FACTORY", lambda: httpx.Client(headers={"x-mine": "1"}, timeout=None))
    close_session()
    with contextlib.suppress(PushError), explained("tester/clip"):
        for _ in range(2):
            assert get_session().timeout.read == MOST_SILENT_SECONDS and get_session().headers["x-mine"] == "1"
            close_session()
        raise ConnectionError
    assert get_session().timeout.read is None and get_session().headers["x-mine"] == "1"
    close_session()
