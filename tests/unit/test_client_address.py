from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from usersvc.web.client_address import Address, Network, client_address

PROXIES = (ip_network("10.0.0.0/8"), ip_network("::1"))


def client_of(peer: str, *forwarded: str, trusted: Sequence[Network] = PROXIES) -> Address | None:
    headers = CIMultiDict(("X-Forwarded-For", line) for line in forwarded)
    return client_address(make_mocked_request("GET", "/", headers).clone(remote=peer), trusted)


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["203.0.113.9, 198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["203.0.113.9", "198.51.100.7,10.0.0.2"], "198.51.100.7"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["198.51.100.7, nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["nonsense, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["198.51.100.7:4711"], "198.51.100.7"),
        ("::1", ["[2001:db8::7]:4711"], "2001:db8::7"),
        ("::1", ["2001:db8::7"], "2001:db8::7"),
        ("::1", ["[2001:db8::7]"], "2001:db8::7"),
        ("::ffff:192.0.2.1", [], "192.0.2.1"),
        ("::ffff:10.0.0.1", ["::ffff:198.51.100.7"], "198.51.100.7"),
        ("fe80::1%eth0", [], "fe80::1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", [",,"], "10.0.0.1"),
    ],
)
def test_client_is_the_nearest_address_that_is_not_a_trusted_proxy(
    peer: str, forwarded: list[str], client: str
) -> None:
    assert client_of(peer, *forwarded) == ip_address(client)


def test_forwarded_addresses_are_ignored_without_trusted_proxies() -> None:
    assert client_of("10.0.0.1", "198.51.100.7", trusted=()) == ip_address("10.0.0.1")


def test_peer_without_an_address_has_no_client_address() -> None:
    assert client_of("", "198.51.100.7") is None


@given(st.lists(st.text() | st.from_regex(r"[0-9a-f.:\[\], %]*", fullmatch=True)))
def test_any_forwarded_text_yields_an_address(forwarded: list[str]) -> None:
    assert isinstance(client_of("10.0.0.1", *forwarded), IPv4Address | IPv6Address)


@given(st.lists(st.ip_addresses()), st.ip_addresses().filter(lambda ip: not any(ip in net for net in PROXIES)))
def test_addresses_forged_by_a_client_are_ignored(forged: list[IPv4Address], client: IPv4Address) -> None:
    line = ", ".join([*map(str, forged), str(client)])
    mapped = getattr(client, "ipv4_mapped", None)

    assert client_of("10.0.0.1", line) == (mapped or client)
