"""A Hub for tests: it serves the real Hugging Face clients from the loopback interface and a temporary folder.

    with HubServer(folder) as hub:
        subprocess.run([...], env={**os.environ, **hub.env})   # any client: push_to_hub, from_pretrained, ...
        with hub.fault(Refusal(status=500), path="/resolve/", times=2) as fault, hub.recording() as exchanges:
            ...

Clients read their settings when they are imported, so they run in processes of their own. `hub_api.py` lists what is
served. Left out are Git itself, Xet, .gitignore, gated repositories, organisations, pagination, and
all of discussions but `create_pr`.
"""

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal

from tests.hub.hub_access import Account
from tests.hub.hub_api import HubApi
from tests.hub.hub_connection import Listener
from tests.hub.hub_repository import Repository, RepoType
from tests.hub.hub_traffic import Delay, Disconnection, Exchange, Fault, Refusal, Traffic, matching

__all__ = ["Delay", "Disconnection", "Exchange", "Fault", "HubServer", "Refusal", "matching"]


class HubServer:
    """The Hub and its storage, two servers with one memory; `user` has an account with a token that may write.

    Leaving the context stops the servers, and raises if a request made them crash.
    """

    def __init__(self, folder: Path, user: str = "tester"):
        self.user = user
        self._folder = folder
        self._api = HubApi(folder / "objects")
        self._traffic = Traffic()
        self._listener = Listener(self._api.answer, self._traffic)
        self._storage = Listener(self._api.answer_storage, self._traffic)
        self.url = self._api.url = self._listener.url
        self._api.storage_url = self._storage.url
        self.token = self.add_account(user, "write")
        self.env = self.client_env(self.token)

    def __enter__(self) -> "HubServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._storage.close()
        if crashes := self._listener.crashes + self._storage.crashes:
            raise RuntimeError(f"The test Hub crashed on {len(crashes)} requests, first on this one:\n{crashes[0]}")

    def client_env(self, token: str | None) -> dict[str, str]:
        """The variables of a client that has never been here: a fresh cache, and this token (`None`: anonymous)."""
        home = Path(tempfile.mkdtemp(prefix="hf_home_", dir=self._folder))
        proxies = {name: "" for name in ("http_proxy", "https_proxy", "all_proxy")}
        proxies |= {"no_proxy": "127.0.0.1,localhost"}
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": token or "",
            "HUGGING_FACE_HUB_TOKEN": "",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_MODULES_CACHE": str(home / "modules"),
            "HF_DATASETS_CACHE": str(home / "datasets"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            **proxies,
            **{name.upper(): value for name, value in proxies.items()},
        }

    def add_account(self, user: str, access: Literal["write", "read", "expired"]) -> str:
        """A new token of the user; each user owns the namespace of that name."""
        token = f"hf_{secrets.token_hex(16)}"
        self._api.access.accounts[token] = Account(user, access)
        return token

    @contextmanager
    def restrict_token(self, access: Literal["read", "expired"]) -> Iterator[None]:
        """Takes rights from `token` for a while."""
        account = self._api.access.accounts[self.token]
        before, account.access = account.access, access
        try:
            yield
        finally:
            account.access = before

    def fault(
        self,
        kind: Refusal | Disconnection | Delay,
        method: str | None = None,
        path: str = "",
        times: int | None = 1,
    ) -> AbstractContextManager[Fault]:
        """Misbehaves on the next `times` requests (`None`: on all) whose path matches the regular expression."""
        return self._traffic.switch_on(Fault(kind, method, path, times))

    @contextmanager
    def recording(self) -> Iterator[list[Exchange]]:
        """A list that, when the context ends, holds the exchanges made meanwhile."""
        exchanges: list[Exchange] = []
        before = len(self._traffic.exchanges())
        yield exchanges
        exchanges += self._traffic.exchanges()[before:]

    @contextmanager
    def asking_for_parts(self, part_bytes: int) -> Iterator[None]:
        """Has larger files uploaded in parts of this size, as the Hub has those of several gigabytes."""
        self._api.part_bytes = part_bytes
        try:
            yield
        finally:
            self._api.part_bytes = None

    def repository(self, repo_id: str, repo_type: RepoType = "model") -> Repository:
        """What the server holds, for tests that look behind it."""
        return self._api.repositories[repo_type, repo_id]

    def contents(self) -> list[bytes]:
        """Everything that was ever sent as the content of a file, committed or not."""
        return [file.read_bytes() for file in (self._folder / "objects").iterdir()]
