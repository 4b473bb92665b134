"""The address of the client: the peer, or the address that a trusted proxy forwards."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from aiohttp import web

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def client_address(request: web.BaseRequest, trusted: Sequence[Network]) -> Address | None:
    """The nearest address that is not that of a trusted proxy.

    ``X-Forwarded-For`` is read from its end, where each proxy appends its peer: everything before the first untrusted
    address may be forged by the client. Reading ends at anything that is not an address.

    Returns:
        None if the peer has no address, as with a UNIX socket.
    """
    nearest = _address(request.remote or "")
    if not trusted or nearest is None:
        return nearest
    entries = ",".join(request.headers.getall("X-Forwarded-For", ())).split(",")
    while entries and any(nearest in network for network in trusted):
        before = _address(entries.pop())
        if before is None:
            break
        nearest = before
    return nearest


def _address(text: str) -> Address | None:
    """Read an address, with or without the brackets and the port that some proxies write (RFC 7239, section 6)."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.scope_id is not None:
            # The zone is the peer's own name for a link.
            return IPv6Address(address.packed)
    return address
