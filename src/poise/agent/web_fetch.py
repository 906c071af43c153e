"""Reading named addresses of the web, and no others.

An address is compared after it has been taken apart: scheme, host and port as they were named, the path at or below
the one that was named. A host's numbers are looked up once, checked, and connected to, so that a name that changes its
numbers in between leads nowhere else. Every redirect is an address like any other.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import unquote, urljoin, urlsplit

import httpx
from pydantic import Field

from poise.agent.function_tools import function_tool
from poise.agent.tool import AgentTool
from poise.errors import InvalidArgument, ToolFailed, first_line

__all__ = ["NamedAddress", "WebFetch", "fetch_tool", "named_address"]

MOST_BYTES_FETCHED = 500_000
MOST_REDIRECTS = 3
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class NamedAddress:
    """An address that may be read, with all that lies below its path.

    Attributes:
        scheme: Either http or https.
        host: Host in lower case; of an IPv6 address without its brackets.
        port: Port, the scheme's own where none is written.
        path: Path, beginning with a slash.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def is_numeric(self) -> bool:
        """Whether the host was named by its number or as localhost, and so its place was chosen knowingly."""
        return self.host == "localhost" or _ip_of(self.host) is not None

    def covers(self, other: NamedAddress) -> bool:
        """Whether another address is this one or lies below it."""
        if (self.scheme, self.host, self.port) != (other.scheme, other.host, other.port):
            return False
        return other.path == self.path or other.path.startswith(self.path.rstrip("/") + "/")


def named_address(url: str) -> NamedAddress:
    """An address taken apart.

    Raises:
        ToolFailed: it is no address of the web, or holds what two programs may read in two ways.
    """
    if not url or len(url) > 2000 or not re.fullmatch(r"[\x21-\x7e]+", url) or "\\" in url:
        raise ToolFailed("The address has blanks or signs that no address has.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ToolFailed("That is no address of the web.") from error
    if parts.scheme not in PORTS or not parts.hostname:
        raise ToolFailed("Only http:// and https:// addresses can be read.")
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise ToolFailed("An address with a user's name in it is refused.")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise ToolFailed("An address with ? or # is refused: what is asked must be named, not made up.")
    path = parts.path or "/"
    decoded = unquote(path)
    if re.search(r"%(2f|5c|2e|25|00)", path, re.IGNORECASE) or "//" in decoded or ";" in decoded:
        raise ToolFailed("An address whose path hides signs is refused.")
    if any(part in (".", "..") for part in decoded.split("/")):
        raise ToolFailed("An address with . or .. in its path is refused.")
    host = parts.hostname.lower().rstrip(".")
    if not host or not re.fullmatch(r"[a-z0-9.:-]+", host):
        raise ToolFailed("That is no name of a host.")
    return NamedAddress(parts.scheme, host, PORTS[parts.scheme] if port is None else port, path)


class WebFetch:
    """Reads addresses that were named.

    Args:
        addresses: Each may be read, with what lies below it.
        private: Whether a named host may have a private number, as a company's own has. One that is named by its
            number, or as localhost, may in any case.
        timeout: Seconds that one request may take.

    Raises:
        InvalidArgument: an address cannot be taken apart.
    """

    def __init__(self, addresses: Sequence[str], *, private: bool = False, timeout: float = 30.0) -> None:
        try:
            self.addresses = tuple(named_address(address) for address in addresses)
        except ToolFailed as error:
            raise InvalidArgument(f"An address to fetch cannot be used: {error}") from error
        self.private, self.timeout = private, timeout

    def fetch(
        self, url: Annotated[str, Field(description="One of the addresses that may be read, or below one.")]
    ) -> str:
        """Read a page or file of the web."""
        for _ in range(MOST_REDIRECTS + 1):
            text, onward = self._read(url)
            if onward is None:
                return text
            url = onward
        raise ToolFailed(f"The address redirects more than {MOST_REDIRECTS} times.")

    def _read(self, url: str) -> tuple[str, str | None]:
        """The text there, or where it redirects to."""
        address = named_address(url)
        named = next((one for one in self.addresses if one.covers(address)), None)
        if named is None:
            raise ToolFailed(f"{url} is refused: it is not among the addresses that may be read.")
        number = _checked_number(address, allow_private=self.private or named.is_numeric)
        host = f"[{address.host}]" if ":" in address.host else address.host
        place = f"[{number}]" if ":" in number else number
        headers = {"host": host if address.port == PORTS[address.scheme] else f"{host}:{address.port}"}
        headers["user-agent"] = "poise-agent"
        request = f"{address.scheme}://{place}:{address.port}{address.path}"
        try:
            with (
                httpx.Client(timeout=self.timeout, follow_redirects=False, trust_env=False) as client,
                client.stream("GET", request, headers=headers, extensions={"sni_hostname": address.host}) as answer,
            ):
                if answer.is_redirect:
                    return "", urljoin(url, answer.headers.get("location", ""))
                if answer.status_code >= 400:
                    passing = answer.status_code in (408, 425, 429) or answer.status_code >= 500
                    raise ToolFailed(
                        f"{url} answered with status {answer.status_code}.", kind="passing" if passing else "failed"
                    )
                data = b""
                for piece in answer.iter_bytes():
                    data += piece
                    if len(data) > MOST_BYTES_FETCHED:
                        raise ToolFailed(f"{url} has more than {MOST_BYTES_FETCHED:,} bytes.")
                return data.decode(answer.charset_encoding or "utf-8", errors="replace"), None
        except (httpx.HTTPError, httpx.InvalidURL, LookupError) as error:
            raise ToolFailed(f"{url} cannot be read: {first_line(error)}.", kind="passing") from error


def _ip_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _checked_number(address: NamedAddress, *, allow_private: bool) -> str:
    """The number to connect to; every number of the host has to be one that may be."""
    try:
        entries = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ToolFailed(f"The host {address.host} is not known.", kind="passing") from error
    numbers = [str(entry[4][0]) for entry in entries]
    for number in numbers:
        if not allow_private and not is_public_number(number):
            raise ToolFailed(
                f"{address.host} is refused: it is at {number}, a private address, which has to be named as one."
            )
    return numbers[0]


def is_public_number(number: str) -> bool:
    """Whether an IP address is one of the public internet, also where it is an IPv4 address inside an IPv6 one."""
    parsed = _ip_of(number.partition("%")[0])
    if parsed is None:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo or (None, None))[1]
        if parsed in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return inner.is_global and not inner.is_multicast
    return parsed.is_global and not parsed.is_multicast


def fetch_tool(web: WebFetch) -> AgentTool:
    """Fetching as a tool, which names the addresses."""
    places = ", ".join(f"{one.scheme}://{one.host}{_port_text(one)}{one.path}" for one in web.addresses)
    description = f"Read a page or file of the web. Only these addresses, and what lies below them: {places}"
    return function_tool(web.fetch, touches=["read", "network"], repeatable=True, description=description)


def _port_text(address: NamedAddress) -> str:
    return "" if address.port == PORTS[address.scheme] else f":{address.port}"
