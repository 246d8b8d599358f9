"""Addresses of the cluster: checks them, and finds the one that process 0 listens at."""

import contextlib
import ipaddress
import re
import socket

from moco_jax import text


class WrongFlags(ValueError):
    """A flag or an environment variable that describes the cluster is missing or wrong."""


def split(address: str, name: str) -> tuple[str, int]:
    """Returns the host and the port of HOST:PORT.

    Args:
      address: such as host0:1234 or [::1]:1234.
      name: the flag or variable that gave it, for the error message.

    Raises:
      WrongFlags: if it is something else.
    """
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s\[\]/]+):([0-9]{1,5})", address)
    if not match or not 1 <= int(match[2]) <= 65535 or not _is_host(match[1]):
        raise WrongFlags(
            f"{name} must be HOST:PORT with a port from 1 to 65535; got {name}={shown(address)}"
        )
    return match[1].strip("[]"), int(match[2])


def _is_host(name: str) -> bool:
    try:
        return bool(name.encode("idna"))
    except UnicodeError:  # for example an empty label, or one of more than 63 characters
        return False


def to_bind(coordinator: str) -> str | None:
    """Returns the host:port that process 0 listens at; None: at all addresses of this machine.

    It is the address of the coordinator's host where that is one address of this machine. With a
    name that means several addresses, or none that is here (NAT, containers), it is None. Debian
    calls a machine's own name 127.0.1.1, which no other machine can reach: that is None too.
    """
    host, port = split(coordinator, "--coordinator")
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return None
    known = {str(address): _is_loopback(str(address)) for address in found}
    if all(known.values()):
        if not (host == "localhost" or _is_loopback(host)):
            return None
        address = min(known, key=lambda x: (x != "127.0.0.1", x))
    elif len(known) == 1:
        [address] = known
    else:
        return None
    return joined(address, port) if _is_here(address) else None


def joined(host: str, port: int) -> str:
    """Returns host:port, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(address: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address).is_loopback
    return False


def _is_here(address: str) -> bool:
    """Returns whether a socket of this machine can have the address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def shown(given: str, limit: int = 200) -> str:
    """Returns what was given as printable text, cut after `limit` characters."""
    return text.printable(given[:limit]) + ("..." if len(given) > limit else "")
