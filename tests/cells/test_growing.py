"""Showing cells, adopting a copy, flipping slots: what is done once, and what is refused."""

import fcntl
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connection, connections

from eventbus import cellmap, cells, identity, kafka, producer
from eventbus.cellfile import Draft
from eventbus.consume import offsets
from eventbus.database.sql import execute
from eventbus.deadletters import store
from eventbus.models import (
    CellIdentity,
    ConsumerOffset,
    DeadLetter,
    Erasure,
    IdempotencyKey,
    ProcessedEvent,
)
from feeds import verification
from feeds.models import Follow
from posts.models import Post
from tests.cells.maps import ALIAS, DATABASES, manage
from tests.cells.split import FLIP, MOVING, Split, close
from tests.cells.test_handlers import assert_no_feed_of_others
from tests.cells.test_processes import whole_feed
from tests.crash import outages
from tests.eventbus import broker
from tests.eventbus.dead_letter_factories import a_dead_letter, an_entry
from tests.factories import PostCreatedFactory, UserFollowedFactory, UserMutedFactory, apply

pytestmark = pytest.mark.django_db(transaction=True, databases=DATABASES)


@pytest.fixture(scope="module", autouse=True)
def empty_log(django_db_setup: None) -> None:
    outages.renew_embedded_broker()
    kafka.create_topics()


def put_offsets(**ends: int) -> None:
    for name, end in ends.items():
        with cells.on(cells.every()[name]):
            offsets.put(kafka.fanout_group(), kafka.FEED_EVENTS, "topic", {3: end})


def test_a_copy_becomes_the_new_cell_once_and_goes_on_from_its_own_offsets(split: Split) -> None:
    put_offsets(a=7)
    split.copy_database()
    put_offsets(a=9)
    assert "The database of cell b is that of cell a." in split.refused(*FLIP)
    assert "would become" in split.done("adopt", "b", "--dry-run")
    assert "The database of cell b is that of cell a." in split.refused(*FLIP)
    assert "is now that of cell b" in split.done("adopt", "b")
    assert "is its own already" in split.done("adopt", "b")
    with cells.on(cells.every()["b"]):
        kept = ConsumerOffset.objects.filter(group__in=["fanout.a", "fanout.b"])
        offsets_kept = dict(kept.values_list("group", "next_offset"))
        assert offsets_kept == {"fanout.a": 7, "fanout.b": 7}
        assert CellIdentity.objects.get().name == "b"


def test_a_database_from_before_there_were_cells_goes_on_where_it_was(split: Split) -> None:
    CellIdentity.objects.all().delete()
    offsets.put("fanout", kafka.FEED_EVENTS, "topic", {3: 7})
    with cells.on(cells.every()["a"]):
        identity.claim()
        identity.claim()
        kept = offsets.kept(kafka.fanout_group(), kafka.FEED_EVENTS, [3])
    assert kept == {3: offsets.KeptOffset(7, "topic")}
    assert CellIdentity.objects.get().name == "a"


def test_the_copy_stores_dead_letters_of_before_it_was_made(split: Split) -> None:
    """Those that were on their way: events that neither has applied, behind the offset of both."""
    put_offsets(a=7)
    split.copy_database()
    split.done("adopt", "b")
    letters = [
        a_dead_letter(
            event_id=offset, group="fanout.a", origin_offset=offset, topic=kafka.FEED_EVENTS
        )
        for offset in (6, 7)
    ]
    for name, stored in {"a": {6, 7}, "b": {6}}.items():
        with cells.on(cells.every()[name]):
            store.store(letters)
            assert set(DeadLetter.objects.values_list("event_id", flat=True)) == stored


def test_a_copy_is_not_flipped_to_before_it_has_caught_up(split: Split) -> None:
    Follow.objects.create(follower_id=4, followee_id=1, event_id=1)
    put_offsets(a=7)
    split.copy_database()
    split.done("adopt", "b")
    put_offsets(a=12)
    assert "Cell b is 5 events behind cell a." in split.refused(*FLIP, "--wait=0.3")
    put_offsets(b=12)
    Follow.objects.create(follower_id=4, followee_id=2, event_id=1)
    assert "Cell b lacks 1 of 2 follows" in split.refused(*FLIP)
    with cells.on(cells.every()["b"]):
        # Its erasure has come further there.
        Erasure.objects.create(user_id=2, event_id=2, step="feed")
    assert "Cell b has what cell a has" in split.done("split-check", *FLIP[1:])
    assert "would serve slots" in split.done(*FLIP, "--dry-run")
    assert "serves slots 512-1023 now" in split.done(*FLIP)
    assert "serves slots 512-1023 already" in split.done(*FLIP)


def test_what_readers_see_counts_though_no_offset_says_so_yet(split: Split) -> None:
    """A worker moves its offsets after the effects of a whole batch."""
    put_offsets(a=7)
    split.copy_database()
    split.done("adopt", "b")
    ProcessedEvent.objects.create(event_id=5, actor_id=1, type="post.created")
    assert "Cell b is 1 events behind cell a." in split.refused(*FLIP, "--wait=0.1")
    with cells.on(cells.every()["b"]):
        ProcessedEvent.objects.create(event_id=5, actor_id=1, type="post.created")
    assert "serves slots 512-1023 now" in split.done(*FLIP)


def test_readers_are_not_moved_to_where_events_of_theirs_are_dead_letters(split: Split) -> None:
    split.copy_database()
    split.done("adopt", "b")
    with cells.on(cells.every()["b"]):
        an_entry(event_id=5, group="fanout.b")
    assert "they can be flipped" in split.done("split-check", *FLIP[1:])
    ProcessedEvent.objects.create(event_id=5, actor_id=1, type="post.created")
    assert "1 events that cell a has processed are dead letters in cell b" in split.refused(*FLIP)


def test_what_cannot_be_is_refused(split: Split) -> None:
    split.copy_database()
    right = split.change("b", database=f"{split.url_of('a')}?application_name=b")
    same = manage("cells", "adopt", "b", FEED_CELLS=str(split.file))
    assert (same.returncode, same.stdout) == (1, "")
    assert "Cells a and b have the same database." in same.stderr
    split.change("b", database=right)
    split.done("adopt", "b")
    assert "Cell b serves nobody yet" in split.refused("tidy")
    back = ("flip", "--from=b", "--to=a")
    assert "serves slots 5-9 already" in split.done(*back, "--slots=5-9")
    assert "slots 5000, which are not within 0-1023" in split.refused(*back, "--slots=5000")
    assert "There are no slots to move." in split.refused(*back, "--slots=")
    check = ("split-check", "--from=b", "--to=a", "--slots=5-9")
    assert "Cell b does not serve slots 5-9." in split.refused(*check)
    assert "There is no cell c" in split.refused("split-check", "--from=a", "--to=c", "--slots=5")
    split.change("a", slots="0-1022")
    assert "No cell serves slot 1023." in split.refused(*FLIP)


def test_a_copy_that_cannot_go_on_is_not_adopted(split: Split) -> None:
    topic_id = kafka.topic_id(AdminClient(kafka.client_config()), kafka.FEED_EVENTS)
    with cells.on(cells.every()["a"]):
        # Of so long ago that Kafka has since deleted five records.
        offsets.put(kafka.fanout_group(), kafka.FEED_EVENTS, topic_id, {0: -5})
    split.copy_database()
    assert "Kafka no longer has 5 events" in split.refused("adopt", "b")
    with cells.on(cells.every()["b"]):
        ConsumerOffset.objects.update(next_offset=0)
    # As a standby that nobody has promoted.
    with read_only(ALIAS), pytest.raises(OperationalError, match="session is read-only"):
        split.run("adopt", "b")
    assert "is now that of cell b" in split.done("adopt", "b")


@contextmanager
def read_only(alias: str) -> Iterator[None]:
    name = connections[alias].settings_dict["NAME"]
    execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    close(alias)
    yield
    execute(f'ALTER DATABASE "{name}" RESET ALL')
    close(alias)


def test_of_two_who_change_the_map_one_is_refused(split: Split) -> None:
    """Whoever comes second would undo what the first has done."""
    one, other = Draft(str(split.file)), Draft(str(split.file))
    b = cellmap.slots_of("b", MOVING)
    everybody = cellmap.slots_of("a", "0-1023")
    one.place("a", everybody - b, everybody).place("b", b, everybody)
    split.file.chmod(0o640)
    with split.file.open() as present:
        fcntl.flock(present, fcntl.LOCK_EX)
        with ThreadPoolExecutor() as threads:
            waiting = threads.submit(one.write)
            time.sleep(0.1)
            assert not waiting.done()
            fcntl.flock(present, fcntl.LOCK_UN)
            assert waiting.result()
    assert split.file.stat().st_mode & 0o777 == 0o640
    with pytest.raises(ImproperlyConfigured, match="has changed meanwhile"):
        other.write()
    assert cellmap.read(str(split.file)).places["b"].slots == b


def test_a_process_that_has_not_noticed_yet_what_its_cell_holds_looks_again(split: Split) -> None:
    """Else a worker whose group changes while a cell is tidied would end."""
    CellIdentity.objects.update(holds="0-511")
    split.change("a", slots="0-511", holds="0-511")
    split.change("b", slots=MOVING)
    identity.require()
    assert cells.own().holds_user(1)
    assert not cells.own().holds_user(4)
    # Who was started with another map is refused.
    split.change("a", holds="0-600")
    split.go_by_file()
    with pytest.raises(ImproperlyConfigured, match="holds 0-600 here, and 0-511 by its database"):
        identity.require()


class Killed(BaseException):
    """As of a process that is no more: its transaction is undone, and it does nothing else."""


class KilledAt:
    """Ends what asks either cell's PostgreSQL at the statement of this number."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, execute: Any, *statement: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise Killed
        return execute(*statement)


def killed_at_statements(split: Split, step: int, *arguments: str) -> int:
    """Run a command that is killed at its first statement, again until a later one, and so on until
    it comes to its end; return at how many it was killed.
    """
    for times, number in enumerate(itertools.count(1, step)):
        at = KilledAt(number)
        with connection.execute_wrapper(at), connections[ALIAS].execute_wrapper(at):
            try:
                split.done(*arguments)
            except Killed:
                continue
        return times
    raise AssertionError


def test_what_is_ended_at_any_statement_is_finished_by_the_next_run(split: Split) -> None:
    in_a, in_b = 1, 4
    apply(
        UserFollowedFactory(follower_id=in_b, followee_id=in_a),
        UserFollowedFactory(follower_id=in_a, followee_id=in_b),
        UserFollowedFactory(follower_id=in_b, followee_id=5),
        UserMutedFactory(user_id=in_b, muted_id=5),
        *[PostCreatedFactory(author_id=author) for author in (in_a, in_b, 5)],
    )
    posts = {post.author_id: post.id for post in Post.objects.all()}
    IdempotencyKey.objects.create(user_id=in_b, key="k", fingerprint="", event_id=1, object_id=2)
    split.copy_database()
    with cells.on(cells.every()["b"]):
        IdempotencyKey.objects.all().delete()  # it was made after the copy
    assert killed_at_statements(split, 1, "adopt", "b") > 10
    assert killed_at_statements(split, 5, *FLIP) > 3
    assert killed_at_statements(split, 1, "tidy", "--notice=0.01") > 40
    split.go_by_file()
    for cell, reader in zip(cells.every().values(), (in_a, in_b), strict=True):
        with cells.on(cell):
            assert_no_feed_of_others(cell)
            assert set(whole_feed(reader)) == {posts[in_a], posts[in_b]}
            assert verification.verify().equal
            assert list(IdempotencyKey.objects.values_list("key")) == [("k",)] * cell.serves(in_b)


def test_a_map_in_no_file_is_printed(split: Split) -> None:
    split.copy_database()
    split.done("adopt", "b")
    done = manage("cells", *FLIP, FEED_CELLS=split.file.read_text())
    assert done.returncode == 0, done.stderr
    printed = cellmap.read(done.stdout[done.stdout.index("{") :])
    assert cellmap.written(printed.places["b"].slots) == MOVING
    assert "put this in its place" in done.stderr


def test_readers_are_not_moved_before_it_is_known_what_has_failed_where_they_go(
    split: Split,
) -> None:
    split.copy_database()
    split.done("adopt", "b")
    letter = a_dead_letter(group="fanout.b", topic=kafka.FEED_EVENTS)
    producer.get().send(
        kafka.DEAD_LETTER_EVENTS, letter.key, letter.value, letter.headers, lambda error: None
    )
    assert producer.get().flush(10) == 0
    assert "Cell b has 1 dead letters still to store" in split.refused(*FLIP)
    with cells.on(cells.every()["b"]):
        everything = dict.fromkeys(range(broker.partitions_of(kafka.DEAD_LETTER_EVENTS)), 1)
        offsets.put(kafka.dlq_group(), kafka.DEAD_LETTER_EVENTS, "topic", everything)
    assert "serves slots 512-1023 now" in split.done(*FLIP)
