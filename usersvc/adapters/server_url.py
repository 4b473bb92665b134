"""URLs of servers, accepted or refused alike by every patch release of Python."""

import re
from ipaddress import IPv6Address
from urllib.parse import urlsplit

# RFC 3986, section 3: brackets enclose an IPv6 address and occur nowhere else in the authority.
_URL = re.compile(
    r"(?P<before>[A-Za-z][A-Za-z0-9+.-]*://(?:[^@/?#\[\]]*@)?)(?P<hosts>[^@/?#]*)(?P<after>(?:/[^?#]*)?(?:\?[^#]*)?)"
)
_HOST = re.compile(r"(?:\[(?P<ipv6>.+)\]|[^:\[\]]*)(?::[0-9]{1,5})?", re.ASCII)


def one_url_per_host(url: str) -> list[str]:
    """Split a URL with several hosts, separated by commas, into one URL per host.

    Every release's ``urlsplit`` parses each of these the same way. That is not true of several hosts, or of brackets
    outside the host: the checks of brackets were changed for CVE-2024-11168 and again for CVE-2025-0938.

    Raises:
        ValueError: the URL is malformed, or contains a fragment, a space or a character that is not printable.
    """
    parts = _URL.fullmatch(url)
    # urlsplit removes some control characters; bytes that are not UTF-8 are not printable either.
    if parts is None or not url.isprintable() or " " in url:
        raise ValueError
    hosts = parts["hosts"].split(",")
    for host in hosts:
        match = _HOST.fullmatch(host)
        if match is None:
            raise ValueError
        if match["ipv6"] is not None:
            IPv6Address(match["ipv6"])
    urls = [f"{parts['before']}{host}{parts['after']}" for host in hosts]
    # urlsplit raises ValueError for a port above 65535, and for characters that become delimiters in NFKC.
    if any(urlsplit(each).port == 0 for each in urls):
        raise ValueError
    return urls
