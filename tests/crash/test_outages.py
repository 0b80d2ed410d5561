"""Servers are restarted and killed, and workers freeze, while clients write; nothing is lost or
doubled.
"""

import os
import signal
import time

import pytest

from eventbus.models import ProcessedEvent
from feedsite.embedded.valkey import VALKEY
from tests.crash import outages
from tests.crash.die_at import POINTS
from tests.crash.load import Load
from tests.crash.network import Network
from tests.e2e.system import Process, is_ready, settled, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]

needs_embedded_valkey = pytest.mark.skipif(
    bool(os.environ.get(VALKEY.variable)),
    reason="stops the embedded Valkey, and an external one is in use",
)

AWAY, AFTER = 3.0, 2.0  # seconds of load
MAX_POLL_INTERVAL_MS = 6_000


@outages.needs_embedded_postgres
@pytest.mark.parametrize(
    "end", [outages.postgres.stop, outages.postgres.kill], ids=["restarted", "killed"]
)
def test_postgresql_goes_away_and_comes_back(end: outages.Act, network: Network) -> None:
    workers = [network.system.worker(), network.system.worker()]
    with Load(network) as load:
        wait_until_at_work(network)
        end()
        time.sleep(AWAY)
        outages.postgres.start()
        time.sleep(AFTER)
    assert load.refused > 0
    network.prove()
    assert all(worker.running() for worker in workers)


@outages.needs_embedded_postgres
def test_an_api_that_starts_without_postgresql_takes_writes_once_that_is_back(
    network: Network,
) -> None:
    system = network.system
    system.worker()
    [first, _worker] = system.processes
    assert first.stop() == 0
    outages.postgres.stop()
    system.api(wait_for="healthz")
    outages.postgres.start()
    wait_until(lambda: is_ready(system.url))
    network.post()
    network.prove()


@needs_embedded_valkey
def test_valkey_is_killed_and_comes_back_empty(network: Network) -> None:
    worker = network.system.worker()
    with Load(network) as load:
        wait_until_at_work(network)
        outages.valkey.kill()
        time.sleep(AWAY)
        outages.valkey.start()
        time.sleep(AFTER)
    assert load.refused == load.answers["404"], "Reads and writes go on without a cache."
    network.prove()
    assert worker.running()


@pytest.mark.parametrize(
    "point", ["after poll", "after the database commit", "before the offset commit"]
)
def test_one_of_three_workers_freezes_past_the_poll_interval(point: str, network: Network) -> None:
    """The others take over what it had in hand; when it wakes up, it must not apply or commit that
    again.
    """
    limit = {"KAFKA_MAX_POLL_INTERVAL_MS": str(MAX_POLL_INTERVAL_MS)}
    # Of two lanes the other one may be within a transaction, whose locks PostgreSQL takes from it
    # only after a minute.
    frozen = freezing(network, point, FEED_FANOUT_LANES="1", **limit)
    with Load(network):
        wait_until(lambda: is_stopped(frozen))
        frozen_at = time.monotonic()
        others = [network.system.worker(**limit), network.system.worker(**limit)]
        accepted = network.events.copy()  # not those to come: there is always one on its way
        wait_until(lambda: settled(accepted))
        time.sleep(max(0.0, frozen_at + 1.5 * MAX_POLL_INTERVAL_MS / 1_000 - time.monotonic()))
        frozen.popen.send_signal(signal.SIGCONT)
        time.sleep(AFTER)
    network.prove()
    assert all(worker.running() for worker in others)
    assert frozen.stop() == 0


def wait_until_at_work(network: Network) -> None:
    """Wait until events under load get processed."""
    wait_until(
        lambda: ProcessedEvent.objects.filter(event_id__in=network.events.copy()).count() > 10
    )


def freezing(network: Network, point: str, **variables: str) -> Process:
    """Start a worker that stops, as by SIGSTOP, at `point`."""
    assert point in POINTS
    marker = str(network.system.directory / "frozen")
    arguments = ("-m", "tests.crash.die_at", point, marker, "run_fanout")
    return network.system.command(*arguments, script="-u", AT_POINT="SIGSTOP", **variables)


def is_stopped(process: Process) -> bool:
    pid, status = os.waitpid(process.popen.pid, os.WNOHANG | os.WUNTRACED)
    return pid != 0 and os.WIFSTOPPED(status)
