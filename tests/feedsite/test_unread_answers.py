"""A client that never reads its answers is cut off, and what it asked for with it."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from eventbus import kafka
from tests.e2e.system import PATIENCE, System, running, wait_until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(sys.platform != "linux", reason="Only Linux ends such connections."),
]

# Of 500 kB and more each: more than the buffers of both ends hold.
ASKED = b"GET /schema/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 100


@pytest.fixture
def system(transactional_db: None, tmp_path: Path) -> Iterator[System]:
    kafka.create_topics()
    with running(tmp_path) as started:
        started.api(WORKERS="1", HTTP_SEND_SECONDS="2")
        yield started


def connected(system: System) -> socket.socket:
    """Return a connection with a small buffer for what comes."""
    client = socket.socket()
    client.settimeout(PATIENCE)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    client.connect(("127.0.0.1", httpx.URL(system.url).port or 0))
    return client


def is_held(system: System, client: socket.socket) -> bool:
    """Tell whether the API has the other end still."""
    api = psutil.Process(system.processes[0].popen.pid)
    name = client.getsockname()
    held = [one for process in api.children() for one in process.net_connections("tcp")]
    return any(one.raddr == name and one.status == psutil.CONN_ESTABLISHED for one in held)


def test_a_connection_whose_client_does_not_read_is_ended_and_one_that_idles_is_not(
    system: System,
) -> None:
    with connected(system) as idle, connected(system) as deaf:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert idle.recv(1_000).startswith(b"HTTP/1.1 200")
        deaf.sendall(ASKED)
        wait_until(lambda: is_held(system, deaf))
        wait_until(lambda: not is_held(system, deaf))
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert idle.recv(1_000).startswith(b"HTTP/1.1 200")
