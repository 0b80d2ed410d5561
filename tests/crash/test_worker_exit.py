"""How a worker process ends: its exit status tells a supervisor why."""

import signal
from uuid import uuid4

import pytest

from eventbus import kafka, producer
from eventbus.consume.lanes import EVENTS_WORTH_A_LANE
from eventbus.consume.leaving import EXIT_STUCK
from eventbus.models import DeadLetter, ProcessedEvent
from eventbus.worker import EXIT_FLOOD, EXIT_SECOND_SIGNAL
from feeds import imports, verification
from tests.crash.network import Network
from tests.e2e.system import PATIENCE, Process, wait_until
from tests.factories import PostCreatedFactory

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]


@pytest.fixture(scope="module")
def api_processes() -> int:
    return 1


def started(process: Process) -> Process:
    """Return the process once it can be stopped: before that a signal ends it as any Python."""
    wait_until(lambda: "partitions_assigned" in process.log.read_text())
    return process


def hanging_worker(network: Network, **variables: str) -> Process:
    """Return a worker whose handler has begun and never ends, with its database transaction
    open.
    """
    marker = network.system.directory / "hangs"
    command = ("-m", "tests.crash.die_at", "before the database commit", str(marker), "run_fanout")
    process = network.system.command(*command, script="-u", AT_POINT="hang", **variables)
    network.post()
    wait_until(marker.exists)
    return process


@pytest.mark.parametrize("command", ["run_fanout", "run_dlq"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_worker_cleanly(
    command: str, number: signal.Signals, network: Network
) -> None:
    process = started(network.system.command(command))
    process.popen.send_signal(number)
    assert process.popen.wait(PATIENCE) == 0
    assert "left_group" in process.log.read_text()


def test_a_worker_with_a_long_way_to_go_leaves_after_the_transaction_it_is_at(
    network: Network,
) -> None:
    """Of 400 posts of one author each fills a transaction, and all are one lane's share of a
    batch.
    """
    author = network.authors[0]
    imports.import_follows({(follower, author) for follower in range(100_000, 100_900)})
    posts = [PostCreatedFactory(author_id=author) for _ in range(400)]
    for post in posts:
        producer.publish(post.to_event())
    patient = {"FEED_BATCH_MAX_ROWS": "1000", "FEED_BATCH_MAX_WAIT_MS": "1000"}
    worker = network.system.worker(**patient)
    mine = ProcessedEvent.objects.filter(event_id__in=[post.event_id for post in posts])
    wait_until(mine.exists)
    assert worker.stop() == 0
    assert 0 < mine.count() < len(posts)
    assert worker.log.read_text().count("partitions_revoked") == 1
    network.system.worker()
    wait_until(lambda: mine.count() == len(posts))
    assert verification.verify().equal


def test_a_second_signal_ends_a_worker_that_hangs_at_once(network: Network) -> None:
    worker = hanging_worker(network)
    worker.popen.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in worker.log.read_text())
    assert worker.running()
    worker.popen.send_signal(signal.SIGTERM)
    assert worker.popen.wait(PATIENCE) == EXIT_SECOND_SIGNAL
    network.system.worker()
    network.prove()


def test_a_worker_that_cannot_leave_is_ended_by_its_watchdog(network: Network) -> None:
    worker = hanging_worker(network, LEAVE_SECONDS="1")
    worker.popen.send_signal(signal.SIGTERM)
    assert worker.popen.wait(PATIENCE) == EXIT_STUCK
    network.system.worker()
    network.prove()


def test_a_flood_of_dead_letters_stops_a_worker_and_leaves_the_rest_in_the_topic(
    network: Network,
) -> None:
    worker = network.system.worker(DLQ_FLOOD_COUNT="3", DLQ_FLOOD_SECONDS="60")
    network.system.command("run_dlq")
    flood = [f"no event {uuid4()}".encode() for _ in range(5)]
    for value in flood:
        producer.publish_record(kafka.FEED_EVENTS, b"1", value)
    network.post()
    assert worker.popen.wait(PATIENCE) == EXIT_FLOOD
    assert "3 events became dead letters within 60 s" in worker.log.read_text()
    wait_until(lambda: DeadLetter.objects.filter(value__in=flood).count() == 3)
    network.system.worker()
    network.prove()
    wait_until(lambda: DeadLetter.objects.filter(value__in=flood).count() == 5)


def test_a_flood_in_one_lane_stops_a_worker_although_its_other_lane_hangs(network: Network) -> None:
    flood = [f"no event {uuid4()}".encode() for _ in range(EVENTS_WORTH_A_LANE)]
    for value in flood:
        producer.publish_record(kafka.FEED_EVENTS, b"1", value)
    network.post(EVENTS_WORTH_A_LANE)
    marker = network.system.directory / "hangs"
    command = ("-m", "tests.crash.die_at", "before the database commit", str(marker), "run_fanout")
    two_lanes = {"FEED_FANOUT_LANES": "2", "FEED_BATCH_MAX_WAIT_MS": "1000"}
    worker = network.system.command(
        *command, script="-u", AT_POINT="hang", DLQ_FLOOD_COUNT="3", **two_lanes
    )
    assert worker.popen.wait(PATIENCE) == EXIT_FLOOD
    assert marker.exists()
    network.system.worker()
    network.prove()
