"""Workers, the dead-letter store and the API are killed at every point that matters; nothing is lost or doubled."""

import signal
from uuid import uuid4

import httpx
import pytest
from django.db.models.functions import Now

from eventbus import kafka, producer
from eventbus.models import DeadLetter
from feeds.models import Horizon
from feeds.partitions import first_id_of, layout
from posts.models import Post
from tests.crash.die_at import POINTS
from tests.crash.network import Network
from tests.e2e.system import Process, System, wait_until
from tests.feeds.partitioning import lay_out, partitions_undone

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]


def poison() -> bytes:
    """Return bytes that are no event, unlike those of any other test."""
    return f'{{"not an event": "{uuid4()}"}}'.encode()


def entries(value: bytes) -> list[DeadLetter]:
    return [entry for entry in DeadLetter.objects.all() if bytes(entry.value or b"") == value]


def dying(system: System, point: str, *command: str, **variables: str) -> Process:
    """Start a command that will kill itself at `point`."""
    assert point in POINTS
    marker = str(system.directory / "died")
    return system.command(
        "-m", "tests.crash.die_at", point, marker, *command, script="-u", **variables
    )


def wait_for_death(process: Process) -> None:
    wait_until(lambda: not process.running())
    assert process.popen.returncode == -signal.SIGKILL, process.log.read_text()


@pytest.mark.parametrize(
    "point",
    [
        "after poll",
        "before the database commit",
        "after the database commit",
        "before cache invalidation",
        "after cache invalidation",
        "before PostgreSQL keeps the offset",
        "before the offset commit",
        "after the offset commit",
        "during assignment",
    ],
)
def test_a_worker_killed(point: str, network: Network) -> None:
    victim = dying(network.system, point, "run_fanout")
    network.post()
    wait_for_death(victim)
    network.system.worker()
    network.prove()


def test_a_worker_killed_while_another_joins(network: Network) -> None:
    victim = dying(network.system, "during revocation", "run_fanout")
    network.post()
    wait_until(
        lambda: Post.objects.filter(author_id__in=network.authors).count() == len(network.posts)
    )
    network.system.worker()
    wait_for_death(victim)
    network.post()
    network.prove()


def test_a_worker_killed_while_it_makes_the_partitions_that_posts_wait_for(
    network: Network,
) -> None:
    with partitions_undone():
        lay_out(0, first_id_of(layout().now_ms))
        network.post()
        wait_for_death(dying(network.system, "while partitions are made", "run_fanout"))
        worker = network.system.worker()
        network.prove()
        assert layout().settled
        assert worker.stop() == 0


def test_a_worker_killed_while_it_drops_a_partition(network: Network) -> None:
    with partitions_undone():
        lay_out(0, *(first_id_of(layout().now_ms + minutes * 60_000) for minutes in (-2, -1, 60)))
        network.post()
        wait_for_death(
            dying(network.system, "while a partition is dropped", "run_fanout", FEED_PARTITIONS="2")
        )
        Horizon.objects.update(keeper_due_at=Now())  # as if a minute had passed
        network.system.worker(FEED_PARTITIONS="2")
        network.post()
        wait_until(lambda: layout().horizon > 0 and not layout().unread)
        network.prove()


@pytest.mark.parametrize(
    "point", ["before the dead letter is sent", "after the dead letter is acknowledged"]
)
def test_a_worker_killed_around_a_dead_letter(point: str, network: Network) -> None:
    victim = dying(network.system, point, "run_fanout")
    value = poison()
    producer.publish_record(kafka.FEED_EVENTS, b"1", value)
    network.post()
    wait_for_death(victim)
    network.system.worker()
    network.system.command("run_dlq")
    network.prove()
    wait_until(lambda: entries(value))
    assert len(entries(value)) == 1


@pytest.mark.parametrize(
    "point",
    ["before dead letters are stored", "after dead letters are stored", "before the offset commit"],
)
def test_the_dead_letter_store_killed(point: str, network: Network) -> None:
    victim = dying(network.system, point, "run_dlq")
    network.system.worker()
    value = poison()
    for _ in range(3):
        producer.publish_record(kafka.FEED_EVENTS, b"1", value)
    wait_for_death(victim)
    network.system.command("run_dlq")
    wait_until(lambda: len(entries(value)) == 3)
    network.post()
    network.prove()
    assert [entry.attempts for entry in entries(value)] == [1, 1, 1]


def test_a_replay_killed_before_it_is_marked_can_be_repeated(network: Network) -> None:
    network.system.worker()
    network.system.command("run_dlq")
    value = poison()
    producer.publish_record(kafka.FEED_EVENTS, b"1", value)
    wait_until(lambda: entries(value))
    wait_for_death(
        dying(network.system, "before a replay is marked", "dlq", "replay", "--all", "--yes")
    )
    wait_until(lambda: entries(value)[0].attempts == 2)
    assert network.system.command("dlq", "replay", "--all", "--yes").popen.wait() == 0
    wait_until(lambda: entries(value)[0].attempts == 3)
    assert len(entries(value)) == 1


@pytest.mark.parametrize("point", ["before publishing", "between publish and answer"])
def test_a_post_whose_api_process_dies_is_made_once_when_repeated(
    point: str, network: Network
) -> None:
    system, author = network.system, network.authors[0]
    marker = system.directory / "died"
    system.processes[0].stop()
    system.api(APPLICATION="tests.crash.die_at:application", DIE_AT=point, DIE_MARKER=str(marker))
    system.worker()

    def post() -> httpx.Response | None:
        with system.client(author) as client:
            try:
                return client.post(
                    "/posts", json={"content": "once"}, headers={"Idempotency-Key": "k"}
                )
            except httpx.TransportError:
                return None

    def accepted() -> bool:
        answer = post()
        return answer is not None and answer.status_code == 202

    assert post() is None
    assert marker.exists()
    wait_until(accepted)
    answer, again = post(), post()
    assert answer is not None
    assert again is not None
    assert answer.json() == again.json()
    network.accept(answer, author)
    network.prove()
