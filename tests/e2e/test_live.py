"""Live feeds with real processes: from a `202` to the event, and through the end of an API."""

import socket
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import pytest

from eventbus import kafka
from tests.e2e import system as systems
from tests.e2e.system import Process, System, settled, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]

AUTHOR, READER = 1, 2
OTHERS = range(100, 500)
# Well before granian kills what has not ended.
ENDS_WITHIN_SECONDS = 6.0


def read_until(stream: socket.socket, wanted: bytes) -> bytes:
    """Return what came up to `wanted`; fails when the stream ends or is silent before."""
    heard = b""
    while wanted not in heard:
        data = stream.recv(65_536)
        assert data, heard
        heard += data
    return heard


def test_a_post_is_told_and_the_end_of_an_api_ends_its_streams(tmp_path: Path) -> None:
    kafka.create_topics()
    with systems.running(tmp_path) as system:
        api, _worker = system.api(), system.worker()
        followed = follow(system)
        wait_until(lambda: settled({followed}))
        with system.stream(READER) as stream:
            read_until(stream, b"retry:")
            with system.client(AUTHOR) as client:
                post = client.post("/posts", json={"content": "x"}).json()
            heard = read_until(stream, b"event: new")
            assert post["id"].encode() in heard or read_until(stream, post["id"].encode())
            with ExitStack() as others:
                streams = [stream, *(others.enter_context(system.stream(user)) for user in OTHERS)]
                for other in streams[1:]:
                    read_until(other, b"retry:")
                assert_ends(api, streams)


def follow(system: System) -> int:
    with system.client(READER) as client:
        return int(client.put(f"/follows/{AUTHOR}").json()["event_id"])


def assert_ends(api: Process, streams: Iterable[socket.socket]) -> None:
    began = time.monotonic()
    assert api.stop() == 0
    assert time.monotonic() - began < ENDS_WITHIN_SECONDS
    for stream in streams:
        read_until(stream, b"event: end")
