"""Which clients do not read what they are sent, as the kernel knows it.

Granian takes all it is given to send, and keeps in memory what the client does not take. What it
has handed on already waits in the socket, whose queue tells (Linux; elsewhere nobody is told of).
"""

import errno
import fcntl
import os
import socket
import struct
import sys
import termios
from contextlib import suppress
from pathlib import Path

UNREAD_BYTES = 16_384  # some 200 events
_FDS = Path("/proc/self/fd")


class Unread:
    """Looks at the connections of this process; in one thread."""

    def __init__(self) -> None:
        self._before: set[str] = set()

    def look(self) -> set[str]:
        """Return the addresses of those who had left more than `UNREAD_BYTES` at this look and at
        the one before.
        """
        now = _peers_with_unread()
        found, self._before = now & self._before, now
        return found


def close(peer: str) -> None:
    """Break the connection with that address, which granian would keep until its client reads."""
    for fd in _open_fds():
        with suppress(OSError), _socket_of(fd) as copy:
            if _address(copy) == peer:
                copy.shutdown(socket.SHUT_RDWR)


def _peers_with_unread() -> set[str]:
    peers: set[str] = set()
    for fd in _open_fds():
        # Another thread may have closed it, and most are no sockets of clients.
        with suppress(OSError):
            if _unsent_bytes(fd) > UNREAD_BYTES:
                with _socket_of(fd) as copy:
                    peers.add(_address(copy))
    return peers


def _open_fds() -> list[int]:
    return [int(entry.name) for entry in os.scandir(_FDS)] if sys.platform == "linux" else []


def _unsent_bytes(fd: int) -> int:
    """Return how many bytes of a socket the other end has not taken. Raises `OSError`."""
    (count,) = struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0" * 4))
    return int(count)


def _socket_of(fd: int) -> socket.socket:
    """Return a socket of its own for `fd`. Raises `OSError`."""
    return socket.socket(fileno=os.dup(fd))


def _address(connected: socket.socket) -> str:
    """Return the address of the other end as granian writes it. Raises `OSError`."""
    name = connected.getpeername()
    if connected.family not in (socket.AF_INET, socket.AF_INET6):
        raise OSError(errno.EAFNOSUPPORT, "no connection of a client")
    host, port = name[:2]
    return f"[{host}]:{port}" if connected.family == socket.AF_INET6 else f"{host}:{port}"
