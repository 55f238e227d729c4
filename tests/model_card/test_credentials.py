"""What addresses hold beside a place is taken out of what is published, and nothing else is."""

import pytest

from clip_hf.model_card.credentials import find_secret, without_credentials


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://me:secret@host/photos.csv", "https://host/photos.csv"),
        ("https://host/photos.csv?X-Amz-Signature=secret&b=1", "https://host/photos.csv"),
        ("s3://key:it's@bucket/{00..99}.tar", "s3://bucket/{00..99}.tar"),
        ("simplecache::https://me:secret@host/a.tar?secret", "simplecache::https://host/a.tar"),
        ("zip://a.csv::https://me@host/a.zip?sig=secret", "zip://a.csv::https://host/a.zip"),
        (
            "see https://me:secret@host/a and ftp://me:secret@host:21/b?c=d too",
            "see https://host/a and ftp://host:21/b too",
        ),
        ("s3://bucket/0?.tar", "s3://bucket/0?.tar"),
        ("https://host/@scope/a?", "https://host/@scope/a?"),
        ("what? me@host: photos/0?.tar", "what? me@host: photos/0?.tar"),
    ],
)
def test_addresses_keep_their_place_alone(text, kept):
    assert without_credentials(text) == kept


def test_they_are_found_wherever_they_are_in_a_file():
    url, kept = "https://me:secret@host/a?b=secret", "https://host/a"
    content = {url: [url, {"b": url}], "path": (url, None, True, 0.5)}
    assert without_credentials(content) == {kept: [kept, {"b": kept}], "path": [kept, None, True, 0.5]}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("the token hf_" + "aB3" * 11, "a token of the Hub in line 1"),
        ("https://me:secret@host/a", "an address with a password in line 1"),
        ("a\nhttps://host/a?X-Amz-Signature=0123456789abcdef", "a signed address in line 2"),
        ("https://host/a?b=1&sig=0123456789abcdef", "a signed address in line 1"),
        ("https://host/a?token=0123456789abcdef", "a signed address in line 1"),
        ('{"://": 1, "@": 2, "https://": 3}\n: //\n//@ ://\n', None),
        ("mail me@host, or pip install git+ssh://git@host/me/clip", None),
        ("https://host/a?page=2&sigma=1", None),
    ],
)
def test_secrets_are_named_not_shown(text, what):
    assert find_secret(text.encode()) == what
