"""The demo from start to stop."""

import fcntl
import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from confluent_kafka import KafkaException
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection

from eventbus import kafka
from eventbus.watch import backlog
from eventbus.worker import EXIT_FLOOD
from feedsite.demo import admin, ports, pulse, sample, text
from feedsite.demo.children import Children
from feedsite.demo.client import Client
from feedsite.demo.log import Log
from feedsite.demo.signals import Signals, Stopping, hold
from feedsite.embedded import addresses, stack, tansu
from posts.models import Post

BEAT_SECONDS = 0.1
PULSE_BEATS = 20
DRAIN_SECONDS = 30.0  # without any progress
STAYS_DOWN = {
    EXIT_FLOOD: "a flood of dead letters, which it would only add to. Everything else goes on: see the dead letters "
    "in the admin, and docs/runbook.md. The next `make demo` starts it again"
}
WORKERS = {
    "run_fanout": (kafka.FEED_EVENTS, kafka.FANOUT_GROUP),
    "run_dlq": (kafka.DEAD_LETTER_EVENTS, kafka.DLQ_GROUP),
}


def run(log: Log) -> None:
    """Start everything, load and show the sample, stay until a signal, stop everything.

    Raises `CommandError` when something did not work; everything is stopped then too.
    """
    data_dir: Path = settings.FEED_DATA_DIR
    with _only_demo(data_dir), Signals() as signals:
        demo = Demo(log, signals, data_dir)
        clean = False
        try:
            demo.run()
        except Stopping:
            log.say("Stopping; a second Ctrl-C waits for nothing.")
        finally:
            clean = demo.stop()
    if not clean:
        raise CommandError("The demo did not stop cleanly, see above.")


class Demo:
    """Everything that runs, in one terminal."""

    def __init__(self, log: Log, signals: Signals, data_dir: Path) -> None:
        self._log = log
        self._signals = signals
        self._data_dir = data_dir
        self._children = Children(log, data_dir / "demo.json")

    def run(self) -> NoReturn:
        """Start and show everything, then watch it.

        Raises `Stopping` after a signal, `CommandError` on a failure.
        """
        self._start_servers()
        places = ports.choose()
        self._start_processes(places)
        client = Client(places.api, self._pause)
        client.wait_until_ready()
        self._load_sample(client)
        self._log.block(text.feed(client.get(sample.READER, f"/feeds/{sample.READER}")["results"]))
        self._log.block(text.places(places, admin.ensure(self._data_dir / "admin_password")))
        self._log.block(text.requests(client))
        client.close()
        connection.close_pool()  # type: ignore[attr-defined]
        self._show_pulse(places)

    def _show_pulse(self, places: ports.Places) -> NoReturn:
        """Show what the system does, every few seconds in which it does something."""
        before, shown = pulse.read(places), ""
        while True:
            for _ in range(PULSE_BEATS):
                self._pause(BEAT_SECONDS)
            now = pulse.read(places)
            if before and now and (line := pulse.line(before, now)) != shown:
                self._log.status(shown := line)
            before = now or before

    def stop(self) -> bool:
        """Stop the API, let the workers finish, stop them and the servers; tell whether nothing was
        cut short.
        """
        self._log.end_status()
        self._children.stop("api", self._signals.is_impatient)
        drained = True
        for worker in WORKERS:
            if self._broker_forgets():
                drained &= self._drain(worker)
            self._children.stop(worker, self._signals.is_impatient)
        stack.stop(self._data_dir, self._say_news)
        return drained

    def _start_servers(self) -> None:
        stack.start(self._data_dir, self._say_news)
        self._signals.check()
        if any(
            settings.ENV[name] != url for name, url in stack.environment(self._data_dir).items()
        ):
            # The settings were read before the servers had their addresses. Signals wait for the
            # new program.
            hold()
            os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606 - this very command
        self._log.say("Migrating the database and creating the topics.")
        call_command("migrate", verbosity=0, interactive=False)
        call_command("create_topics", stdout=io.StringIO())

    def _start_processes(self, places: ports.Places) -> None:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "FEED_DATA_DIR": str(self._data_dir),
            "DJANGO_HTTPS": os.environ.get("DJANGO_HTTPS", "false"),  # nobody terminates TLS here
            "PYTHONUNBUFFERED": "1",
            "PORT": str(places.api),
        }
        serve = str(settings.BASE_DIR / "bin" / "serve")
        self._children.start("api", "feedsite.wsgi:application", [serve], environment)
        for worker, port in (("run_fanout", places.run_fanout), ("run_dlq", places.run_dlq)):
            command = [
                sys.executable,
                str(settings.BASE_DIR / "manage.py"),
                worker,
                "--metrics-port",
                str(port),
            ]
            self._children.start(worker, worker, command, environment, stays_down=STAYS_DOWN)

    def _load_sample(self, client: Client) -> None:
        if Post.objects.exists():
            self._log.say("There are posts already, so no sample is loaded.")
            return
        self._log.say("Loading a sample network through the API.")
        posts = sample.load(client)
        self._log.say(
            f"{len(posts)} posts accepted; waiting for the feed of user {sample.READER} to show its part."
        )
        sample.wait_until_visible(client, posts, self._pause)

    def _pause(self, seconds: float) -> None:
        self._signals.check()
        self._children.revive()
        time.sleep(seconds)

    def _broker_forgets(self) -> bool:
        """Whether a stop loses what no worker has read yet."""
        embedded = addresses(self._data_dir).get("KAFKA_BOOTSTRAP_SERVERS")
        return tansu.FORGETS_AT_STOP and embedded == str(settings.KAFKA_BOOTSTRAP_SERVERS)

    def _drain(self, worker: str) -> bool:
        """Wait until the worker has processed what was accepted; tell whether it has."""
        least, give_up_at = sys.maxsize, 0.0
        while True:
            try:
                left = backlog.total(*WORKERS[worker])
                self._children.revive()
            except (KafkaException, CommandError) as error:
                self._log.say(f"Cannot tell what {worker} has left to do: {error}")
                return False
            if left == 0:
                return True
            if least == sys.maxsize:
                self._log.say(f"Waiting for {worker} to process the last {left} events.")
            if left < least:
                least, give_up_at = left, time.monotonic() + DRAIN_SECONDS
            elif (
                self._signals.is_impatient()
                or not self._children.runs(worker)
                or time.monotonic() > give_up_at
            ):
                self._log.say(f"{left} accepted events are lost: {worker} has not processed them.")
                return False
            time.sleep(BEAT_SECONDS)

    def _say_news(self, line: str) -> None:
        if not line.endswith("not running") and "already running" not in line:
            self._log.say(line)


@contextmanager
def _only_demo(data_dir: Path) -> Iterator[None]:
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(data_dir / stack.DEMO_LOCK, os.O_RDWR | os.O_CREAT, 0o600), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CommandError(f"A demo is running already on {data_dir}.") from error
        yield
