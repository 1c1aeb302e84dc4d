"""Whose requests are answered: a page in a browser may point its own host's name at this machine and ask in the user's name."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection

ANY = "*"
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(:\d{1,5})?")


def known(host: str, allowed: Collection[str]) -> frozenset[str]:
    """The names that this server goes by: what it listens at, this machine's own, and those that were allowed."""
    machine = socket.gethostname()
    return frozenset(name.lower().rstrip(".") for name in ("localhost", host, machine, *allowed))


def answers_to(header: str | None, names: Collection[str]) -> bool:
    """Whether a Host header names this server. An address does always: no name was pointed at it.

    >>> [answers_to(host, {"localhost"}) for host in ("localhost:8000", "10.0.0.7", "[::1]:80", "evil.example", None)]
    [True, True, True, False, False]
    """
    if ANY in names:
        return True
    match = _HOST.fullmatch(header or "")
    if match is None:
        return False
    name = match[1].strip("[]").lower().rstrip(".")
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in names
    return True
