"""What must not be published: passwords and signatures in addresses, and tokens of the Hub."""

import re
from typing import Any

# Around the place in an address: who asks for it, and what is asked of it.
# Elsewhere than on the web, a `?` with no `=` behind it is part of a pattern of names.
_USER = re.compile(r"(?<=://)[^\s/?#]*@")
_QUERY = re.compile(r"(https?://[^\s?]*)\?\w\S*|(://[^\s?]*)\?[\w.~%-]+=\S*")
_SECRETS = {
    "a token of the Hub": re.compile(rb"\bhf_[A-Za-z0-9]{20,}"),
    "an address with a password": re.compile(rb"://[^\s/?#\"'<>:@]+:[^\s/?#\"'<>@]+@"),
    "a signed address": re.compile(
        rb"[?&](X-Amz-Signature|X-Goog-Signature|sig|token)=[^\s&\"'<>]{16}", re.IGNORECASE
    ),
}


def without_credentials(content: Any) -> Any:
    """Returns what JSON can hold, with addresses that say no more than a place: without user, password and query.

    Args:
        content: a text, or lists and dictionaries of texts and other things.
    """
    if isinstance(content, str):
        return _QUERY.sub(r"\1\2", _USER.sub("", content))
    if isinstance(content, list | tuple):
        return [without_credentials(item) for item in content]
    if isinstance(content, dict):
        return {without_credentials(name): without_credentials(value) for name, value in content.items()}
    return content


def find_secret(content: bytes) -> str | None:
    """Returns what kind of secret the content of a file seems to hold, and in which line; None if none.

    Args:
        content: of a file of text.
    """
    for name, pattern in _SECRETS.items():
        if found := pattern.search(content):
            line = content.count(b"\n", 0, found.start()) + 1
            return f"{name} in line {line}"
    return None
