"""The names and the network by which the ranks of several hosts find each other: with bad
ones they would wait without a word."""

import os
import socket
from collections.abc import Mapping

from robustly.findings import Finding

NETWORK = "network"
PATIENCE = 10.0
"""Seconds for a connection; the kernel asks again after 1, 3 and 7."""


def first_host(address: str) -> list[Finding]:
    """Whether this host knows the one where ranks are to meet."""
    try:
        socket.getaddrinfo(address, None)
        return []
    except OSError as error:
        found = f"does not know the first host, {address} ({error.strerror})"
        return [Finding("first host", "problem", found, "name it as all hosts know it")]


def network(address: str, port: int) -> list[Finding]:
    """Whether this host reaches the one where ranks are to meet, over the network that they will
    take. Nobody needs to listen there yet: a host that refuses a connection is reached."""
    try:
        socket.create_connection((address, port), PATIENCE).close()
        return []
    except ConnectionRefusedError:
        return []
    except OSError as error:
        found = f"does not reach {address}, port {port} ({error.strerror or error})"
        do = "look at the network of the ranks between the two: cables, routes, firewall"
        return [Finding(NETWORK, "problem", found, do)]


def own_name(variables: Mapping[str, str] = os.environ) -> list[Finding]:
    """Whether others find this host by its own name, as gloo lets them, which NCCL does not. Debian
    writes `127.0.1.1 HOSTNAME` into /etc/hosts."""
    own = socket.gethostname()
    try:
        address = socket.gethostbyname(own)
    except OSError:
        return []  # gloo then looks at the interfaces

    if not address.startswith("127.") or "GLOO_SOCKET_IFNAME" in variables:
        return []

    found = f"{own} resolves to {address} on {own} itself, where others cannot reach it over gloo"
    do = "correct /etc/hosts, or export GLOO_SOCKET_IFNAME with the name of the network interface"
    return [Finding("own name", "problem", found, do)]
