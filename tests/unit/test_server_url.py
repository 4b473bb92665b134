from ipaddress import AddressValueError
from urllib.parse import urlsplit

import pytest

from usersvc.adapters.server_url import one_url_per_host


@pytest.mark.parametrize(
    ("url", "per_host"),
    [
        ("smtp://mail.example.com", ["smtp://mail.example.com"]),
        ("SMTP://user:p%40ss@[::1]:25/", ["SMTP://user:p%40ss@[::1]:25/"]),
        ("postgresql:///db?host=/var/run/postgresql", ["postgresql:///db?host=/var/run/postgresql"]),
        ("postgresql://%2Fvar%2Frun/db", ["postgresql://%2Fvar%2Frun/db"]),
        ("redis://[fe80::1%25eth0]:6379/0", ["redis://[fe80::1%25eth0]:6379/0"]),
        (
            "postgresql://user:p%40ss@one:5433,two,[2001:db8::1]:5434/db?sslmode=require",
            [
                "postgresql://user:p%40ss@one:5433/db?sslmode=require",
                "postgresql://user:p%40ss@two/db?sslmode=require",
                "postgresql://user:p%40ss@[2001:db8::1]:5434/db?sslmode=require",
            ],
        ),
        ("postgresql://[::1],[::2]/db", ["postgresql://[::1]/db", "postgresql://[::2]/db"]),
    ],
)
def test_a_url_is_split_into_one_per_host_which_urlsplit_parses(url: str, per_host: list[str]) -> None:
    assert one_url_per_host(url) == per_host
    assert [urlsplit(each).port for each in per_host][-1] in {None, 25, 5434, 6379}


# urlsplit accepts several of these on some patch releases of CPython 3.11 and refuses them on others.
@pytest.mark.parametrize(
    "url",
    [
        "smtp://user:[::1]@host",
        "smtp://x[::1]:25",
        "smtp://[::1]x:25",
        "smtp://[12345::]",
        "smtp://[127.0.0.1]",
        "smtp://[v1.x]",
        "smtp://[::1",
        "smtp://::1]",
        "smtp://host:",
        "smtp://host:0",
        "smtp://host:65536",
        "smtp://host:\uff12\uff15",
        "smtp://host:25,two:x",
        "smtp://a\u2100b",
        "smtp://us@er@host",
        "smtp://host#top",
        "smtp://ho\tst",
        " smtp://host",
        "smtp:host",
        "//host",
    ],
)
def test_a_malformed_url_is_refused_on_every_release(url: str) -> None:
    # urlsplit and IPv6Address explain it in their own words, which may repeat a password.
    with pytest.raises(ValueError) as refused:  # noqa: PT011  # the text is not part of the interface
        one_url_per_host(url)
    assert refused.type in {ValueError, AddressValueError}
