"""Who writes, stores and replays dead letters, and the API, are killed; nothing is lost or
doubled.
"""

from uuid import uuid4

import httpx
import pytest

from eventbus import kafka, producer
from eventbus.models import DeadLetter
from tests.crash.network import Network
from tests.crash.victims import dying, wait_for_death
from tests.e2e.system import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]


@pytest.fixture(scope="module")
def api_processes() -> int:
    return 1


def poison() -> bytes:
    """Return bytes that are no event, unlike those of any other test."""
    return f'{{"not an event": "{uuid4()}"}}'.encode()


def entries(value: bytes) -> list[DeadLetter]:
    return [entry for entry in DeadLetter.objects.all() if bytes(entry.value or b"") == value]


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
