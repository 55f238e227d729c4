"""Who may do what on the test Hub: accounts behind tokens, owners of repositories, and the Hub's refusals."""

from dataclasses import dataclass
from typing import Literal

from tests.hub.hub_connection import Request
from tests.hub.hub_repository import HubError, Repository


@dataclass
class Account:
    """The bearer of a token, and what the token is good for."""

    user: str
    access: Literal["write", "read", "expired"]


class Access:
    """Tokens and their accounts; a user owns the namespace of the same name and nothing else."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}

    def account(self, request: Request) -> Account | None:
        """The account that asks, `None` for an anonymous request."""
        if request.authorization is None:
            return None
        account = self.accounts.get(request.authorization.removeprefix("Bearer "))
        if account is None or account.access == "expired":
            raise HubError(401, "Invalid credentials in Authorization header")
        return account

    def member(self, request: Request) -> Account:
        """The account that asks, which must not be anonymous."""
        account = self.account(request)
        if account is None:
            raise HubError(401, "Invalid username or password.")
        return account

    def writer(self, request: Request, owner: str | None = None) -> Account:
        """The account that asks, which must be able to write, into the namespace of `owner` if one is given."""
        account = self.member(request)
        if account.access != "write":
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
        if owner not in (None, account.user):
            raise HubError(403, f'You don\'t have the rights to write under the namespace "{owner}"')
        return account

    def readable(self, request: Request, repository: Repository | None) -> Repository:
        """The repository, unless it is missing or private: which of both is nobody else's business."""
        account = self.account(request)
        if repository is not None and not repository.private:
            return repository
        if account is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        if repository is None or repository.owner != account.user:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repository
