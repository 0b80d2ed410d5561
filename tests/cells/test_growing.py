"""Showing cells, adopting a copy, flipping slots: what is done once, and what is refused."""

import pytest

from eventbus import cellmap, cells, identity, kafka
from eventbus.consume import offsets
from eventbus.deadletters import store
from eventbus.models import CellIdentity, ConsumerOffset, DeadLetter, ProcessedEvent
from feeds.models import Follow
from tests.cells.maps import DATABASES, manage
from tests.cells.split import FLIP, MOVING, Split
from tests.eventbus.dead_letter_factories import a_dead_letter, an_entry

pytestmark = pytest.mark.django_db(transaction=True, databases=DATABASES)


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
        kept = dict(ConsumerOffset.objects.values_list("group", "next_offset"))
        assert kept == {"fanout.a": 7, "fanout.b": 7}
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
    Follow.objects.filter(followee_id=2).delete()
    assert "Cell b has what cell a has" in split.done("split-check", *FLIP[1:])
    assert "would serve slots" in split.done(*FLIP, "--dry-run")
    assert "serves slots 512-1023 now" in split.done(*FLIP)
    assert "serves slots 512-1023 already" in split.done(*FLIP)


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
    split.change("a", slots="0-1022")
    assert "No cell serves slot 1023." in split.refused(*FLIP)


def test_a_map_in_no_file_is_printed(split: Split) -> None:
    split.copy_database()
    split.done("adopt", "b")
    done = manage("cells", *FLIP, FEED_CELLS=split.file.read_text())
    assert done.returncode == 0, done.stderr
    printed = cellmap.read(done.stdout[done.stdout.index("{") :])
    assert cellmap.written(printed.places["b"].slots) == MOVING
    assert "put this in its place" in done.stderr
