"""Where process 0 listens, and what is no address."""

import socket

import pytest

from moco_jax.parallel import addresses


@pytest.fixture
def names(monkeypatch):
    """Returns a function that sets the addresses that each name means."""

    def names(**found):
        def getaddrinfo(host, port, **_):
            if host not in found:
                raise socket.gaierror("unknown")
            return [(0, 0, 0, "", (address, 0)) for address in found[host]]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    monkeypatch.setattr(addresses, "_is_here", lambda address: address.startswith(("127", "10")))
    return names


@pytest.mark.parametrize(
    ("host", "found", "bound"),
    [
        ("host0", ["10.0.0.1"], "10.0.0.1:1234"),
        ("host0", ["10.0.0.1", "10.0.0.2"], None),  # others may know only one of them
        ("host0", ["192.0.2.1"], None),  # NAT, or a container
        ("host0", ["127.0.1.1"], None),  # Debian's name for the machine itself
        ("localhost", ["::1", "127.0.0.1"], "127.0.0.1:1234"),
        ("elsewhere", [], None),
    ],
)
def test_process_0_listens_at_the_address_of_its_name(names, host, found, bound):
    names(**{host: found} if found else {})
    assert addresses.to_bind(f"{host}:1234") == bound


def test_addresses_of_this_machine_are_known():
    assert addresses.to_bind("127.0.0.1:1234") == "127.0.0.1:1234"
    assert addresses.to_bind("192.0.2.1:1234") is None


@pytest.mark.parametrize(
    "address",
    ["host", ":1", "host:", "host:0", "host:65536", "host:1\n", "a b:1", "a..b:1", "http://a:1"]
    + ["x" * 64 + ":1", "host:-1", "host:1٣", "[::1:1", "host:" + "9" * 5000],
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(addresses.WrongFlags, match="must be HOST:PORT with a port from 1") as error:
        addresses.split(address, "--coordinator")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("address", "parts"),
    [("host:1", ("host", 1)), ("10.0.0.1:65535", ("10.0.0.1", 65535)), ("[::1]:7", ("::1", 7))],
)
def test_addresses_are_split(address, parts):
    assert addresses.split(address, "--coordinator") == parts
    assert addresses.joined(*parts) == address
