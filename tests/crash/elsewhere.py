"""A machine of its own, as far as TCP can tell, that a server is reached at and that may vanish
without a word.

    python -m tests.crash.elsewhere NAMESPACE ADDRESS PORT

forwards what comes to that place in a network namespace to this port here. It has sockets of both
namespaces, for a socket stays in the one that it was made in.
"""

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

NAMESPACES = Path("/var/run/netns")
HERE, THERE = "198.18.213.1", "198.18.213.2"  # of a net for tests of networks (RFC 2544)
MAC = "02:00:00:00:00:02"
CLONE_NEWNET = 0x4000_0000


@dataclass(frozen=True)
class Machine:
    """Reached at `address`; a port of it leads to the same port here."""

    namespace: str
    address: str = THERE

    def vanish(self) -> None:
        """Have what is sent there arrive nowhere: no answer, no reset, no word from a router."""
        ip("-n", self.namespace, "address", "flush", "dev", self.namespace)


@contextmanager
def machine(port: int) -> Iterator[Machine]:
    """Have a machine that forwards `port`.

    Raises `CalledProcessError` where namespaces cannot be made.
    """
    name = f"feed{os.getpid()}"
    ip("netns", "add", name)
    forwarder = None
    try:
        _connect(name)
        command = [sys.executable, "-m", "tests.crash.elsewhere", name, THERE, str(port)]
        forwarder = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert forwarder.stdout is not None
        assert forwarder.stdout.readline(), "The forwarder did not start."
        yield Machine(name)
    finally:
        if forwarder:
            forwarder.kill()
            forwarder.wait()
        with suppress(subprocess.CalledProcessError):
            ip("link", "delete", _near(name))
        ip("netns", "delete", name)


def can_be_had() -> bool:
    """Tell whether namespaces can be made here: by root, with iproute2."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        ip("netns", "add", "feed-probe")
    except subprocess.CalledProcessError:
        return False
    ip("netns", "delete", "feed-probe")
    return True


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _near(name: str) -> str:
    return f"{name}-0"


def _connect(name: str) -> None:
    near, inside = _near(name), ("-n", name)
    ip("link", "add", near, "type", "veth", "peer", "name", name, "netns", name)
    ip("address", "add", f"{HERE}/30", "dev", near)
    ip("link", "set", near, "up")
    ip(*inside, "link", "set", name, "address", MAC, "up")
    ip(*inside, "address", "add", f"{THERE}/30", "dev", name)
    # Known for good: else it would be missed within seconds, and the sender be told.
    ip("neighbour", "replace", THERE, "lladdr", MAC, "dev", near, "nud", "permanent")


def forward(namespace: str, address: str, port: int) -> None:
    """Accept connections there until killed, each passed on to `port` here."""
    with Path("/proc/self/ns/net").open() as here, (NAMESPACES / namespace).open() as there:
        _enter(there)
        listener = socket.create_server((address, port))
        _enter(here)
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    while True:
        client, _address = listener.accept()
        server = socket.create_connection(("127.0.0.1", port))
        for source, target in ((client, server), (server, client)):
            threading.Thread(target=_pass_on, args=(source, target), daemon=True).start()


def _enter(namespace: IO[str]) -> None:
    # Python's own `os.setns` is of 3.12.
    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "no such namespace")


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    forward(sys.argv[1], sys.argv[2], int(sys.argv[3]))
