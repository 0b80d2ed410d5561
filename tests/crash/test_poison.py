"""Ten kinds of poison among good events: each becomes one dead letter, and nothing else suffers."""

from typing import Any, NamedTuple

import httpx
import orjson
import pytest

from eventbus import envelope, kafka, producer
from eventbus.models import DeadLetter
from tests.crash.buggy import BUG
from tests.crash.network import Network
from tests.e2e.system import Process, System, wait_until
from tests.factories import PostCreatedFactory

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]


class Poison(NamedTuple):
    kind: str
    value: bytes
    exception: str  # its class


def changed(author: int, **fields: Any) -> bytes:
    """Return a valid event of the author but for `fields`; a field named `payload` changes what is
    in it.
    """
    event = PostCreatedFactory(author_id=author).to_event()
    value = orjson.loads(envelope.encode(event))
    payload = fields.pop("payload", {})
    value |= fields
    if isinstance(payload, dict):
        value["payload"] |= payload
    else:
        value["payload"] = payload
    return orjson.dumps(value)


def injected(author: int, somebody_elses_post: int) -> list[Poison]:
    """Return the poison that goes straight into the topic under the author's key."""
    return [
        Poison("undecodable", f"not JSON, {author}".encode(), "UndecodableEvent"),
        Poison("a version of the future", changed(author, version=99), "UnknownEventType"),
        Poison(
            "bad UTF-8",
            changed(author, payload={"content": "TEXT"}).replace(b"TEXT", b"\xff"),
            "UndecodableEvent",
        ),
        Poison("1 MB", changed(author, payload={"content": "x" * 1_000_000}), "InvalidEvent"),
        Poison(
            "deep JSON", b'{"payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "UndecodableEvent"
        ),
        Poison("NUL", changed(author, payload={"content": "a\0b"}), "InvalidEvent"),
        Poison("wrong types", changed(author, event_id=1, payload=[]), "InvalidEvent"),
        Poison("unknown type", changed(author, type="post.exploded"), "UnknownEventType"),
        Poison(
            "integrity",
            changed(author, payload={"post_id": str(somebody_elses_post)}),
            "InvalidEvent",
        ),
    ]


def entries(poison: list[Poison]) -> list[tuple[bytes, str, str]]:
    """Return value, exception class and state of the stored dead letters that hold `poison`."""
    values = [one.value for one in poison]
    stored = DeadLetter.objects.filter(value__in=values).select_related("group")
    return sorted(
        (bytes(e.value or b""), e.group.exception.rpartition(".")[2], e.state) for e in stored
    )


def post_the_bug(network: Network) -> httpx.Response:
    """Return the acceptance of a post that the buggy worker cannot deliver."""
    with network.system.client(network.authors[0]) as client:
        return client.post("/posts", json={"content": f"{BUG} 世界"})


def buggy_worker(system: System) -> Process:
    return system.command("-m", "tests.crash.buggy", "run_fanout", script="-u")


def test_ten_kinds_of_poison_and_a_replay_once_the_bug_is_fixed(network: Network) -> None:
    worker, store = buggy_worker(network.system), network.system.command("run_dlq")
    network.post(10)
    author, other = network.authors[:2]
    (foreign_post, *_) = (post for post, by in network.posts.items() if by == other)
    poison = injected(author, foreign_post)
    for one in poison:
        producer.publish_record(kafka.FEED_EVENTS, envelope.encode_key(author), one.value)
        network.post(5)
    accepted = post_the_bug(network)
    bug = int(accepted.json()["event_id"])
    network.post(10)

    # Ten entries, whole, each with its reason.
    expected = sorted((one.value, one.exception, DeadLetter.State.OPEN) for one in poison)
    wait_until(lambda: entries(poison) == expected)
    wait_until(lambda: DeadLetter.objects.filter(event_id=bug).exists())
    assert DeadLetter.objects.count() == 10
    entry = DeadLetter.objects.select_related("group").get(event_id=bug)
    assert (entry.group.exception, entry.state, entry.attempts) == (
        "builtins.RuntimeError",
        DeadLetter.State.OPEN,
        1,
    )

    # The neighbours are in their feeds, and the workers are alive.
    network.prove()
    assert worker.running()
    assert store.running()

    # The bug is fixed: the replay of the group closes its entry, and the post is where it belongs.
    worker.kill()
    network.system.worker()
    replay = network.system.command("dlq", "replay", "--group", str(entry.group_id), "--yes")
    assert replay.popen.wait() == 0, replay.log.read_text()
    network.accept(accepted, author)
    wait_until(lambda: DeadLetter.objects.get(event_id=bug).state == DeadLetter.State.RESOLVED)
    assert DeadLetter.objects.get(event_id=bug).replays == 1
    network.prove()
    assert DeadLetter.objects.unresolved().count() == 9
