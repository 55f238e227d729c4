"""Faults and the record of requests: each fault is switched on once, for what the real client makes of it."""

import json
import time
import urllib.error
import urllib.request

import pytest

from tests.hub.hub_server import Delay, Disconnection, HubServer, Refusal, matching

BIG_BYTES = 11 * 1024**2
PUT = """
def put(repo, size=1000):
    api.create_repo(repo)
    add = CommitOperationAdd("weights.bin", os.urandom(size))
    start = time.monotonic()
    failed = error(api.create_commit, repo, [add], commit_message="put")
    return failed, time.monotonic() - start
"""


def test_fault_rate_limit(hub, client):
    refusal = Refusal(status=429, retry_after_seconds=1)
    with hub.fault(refusal, "PUT", times=1) as fault, hub.recording() as exchanges:
        failed, seconds = client(PUT + 'print(json.dumps(put("tester/limited")))')
    assert fault.hits == 1 and failed is None
    assert [one.status for one in matching(exchanges, "PUT", "/lfs/")] == [429, 200]
    assert 2.0 <= seconds < 10.0  # huggingface_hub waits for a second more than it is told


def test_fault_server_error(hub, client):
    path = "/tester/failing/(preupload|commit)/"
    with hub.fault(Refusal(status=500), path=path, times=2) as fault, hub.recording() as exchanges:
        failed, seconds = client(PUT + 'print(json.dumps(put("tester/failing")))')
    assert fault.hits == 2 and failed is None and seconds >= 3.0  # 1 s, then 2 s
    assert [one.status for one in matching(exchanges, "POST", "/preupload/")] == [500, 500, 200]
    with hub.fault(Refusal(status=500), path="/tester/doomed/commit/", times=None) as fault:
        failed, _ = client(PUT + 'print(json.dumps(put("tester/doomed")))')
    assert fault.hits == 1 and failed == ["HfHubHTTPError", 500]  # a commit is not tried again
    assert "weights.bin" not in hub.repository("tester/doomed").resolve("main").files


def test_fault_connection_lost_in_an_upload(hub, client):
    with hub.fault(Disconnection(200_000, "upload"), "PUT") as fault, hub.recording() as exchanges:
        failed, _ = client(PUT + f'print(json.dumps(put("tester/cut-up", {BIG_BYTES})))')
    assert fault.hits == 1 and failed is None
    puts = matching(exchanges, "PUT", "/lfs/")
    assert [one.received_bytes for one in puts] == [200_000, BIG_BYTES]
    assert hub.repository("tester/cut-up").resolve("main").files["weights.bin"].size == BIG_BYTES


def test_fault_connection_lost_in_a_download(hub, client):
    client(PUT + f'assert put("tester/cut-down", {BIG_BYTES})[0] is None')
    lost = BIG_BYTES - 1000
    with hub.fault(Disconnection(lost, "download"), "GET", "/lfs/"), hub.recording() as exchanges:
        size = client('print(Path(hf_hub_download("tester/cut-down", "weights.bin")).stat().st_size)')
    gets = matching(exchanges, "GET", "/lfs/")
    kept = 10 * 1024**2  # huggingface_hub keeps what it has in whole pieces of this size
    assert size == BIG_BYTES
    assert [one.byte_range for one in gets] == [None, f"bytes={kept}-"]
    assert [one.sent_bytes for one in gets] == [lost, BIG_BYTES - kept]


def test_fault_answer_lost_after_a_commit(hub, client):
    with hub.fault(Disconnection(0, "download"), path="/tester/lost/commit/"):
        failed, _ = client(PUT + 'print(json.dumps(put("tester/lost")))')
    assert failed == ["RemoteProtocolError", None]
    assert "weights.bin" in hub.repository("tester/lost").resolve("main").files  # the client cannot know


def test_fault_slow_answer(hub, client):
    client(PUT + 'assert put("tester/slow")[0] is None')
    env = hub.client_env(hub.token) | {"HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    with hub.fault(Delay(seconds=2.5), "GET", "/lfs/") as fault, hub.recording() as exchanges:
        size = client('print(Path(hf_hub_download("tester/slow", "weights.bin")).stat().st_size)', env)
    assert fault.hits == 1 and size == 1000
    assert len(matching(exchanges, "GET", "/lfs/")) == 2  # it gave up on the first and asked again


def test_fault_rights_lost_meanwhile(hub, client):
    client(PUT + 'assert put("tester/lapsed")[0] is None')
    upload = """
print(json.dumps(error(api.upload_file, path_or_fileobj=b"x", path_in_repo="x", repo_id="tester/lapsed")))
"""
    with hub.restrict_token("expired"):
        assert client(upload) == ["HfHubHTTPError", 401]
    with hub.restrict_token("read"):
        assert client(upload) == ["HfHubHTTPError", 403]
    assert client(upload) is None


def test_a_recording_waits_for_requests_under_way(hub):
    with hub.fault(Delay(seconds=0.5)), hub.recording() as exchanges:
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(f"{hub.url}/api/whoami-v2", timeout=0.1)
    assert time.monotonic() - start >= 0.5 and exchanges[0].status == 401


def test_a_body_without_a_length_is_read(hub):
    body = iter([b'{"content": ', b'"no metadata"}'])  # http.client sends these in chunks
    with hub.recording() as exchanges, urllib.request.urlopen(f"{hub.url}/api/validate-yaml", data=body) as answer:
        assert json.load(answer)["warnings"] and exchanges == []
    assert exchanges[0].received_bytes == len(b'{"content": "no metadata"}')


def test_a_crash_of_the_server_fails_the_test(tmp_path):
    with pytest.raises(RuntimeError, match=r"crashed on 1 requests[\s\S]*JSONDecodeError"), HubServer(tmp_path) as hub:
        with pytest.raises(urllib.error.HTTPError, match="500"):
            urllib.request.urlopen(f"{hub.url}/api/validate-yaml", data=b"{")
