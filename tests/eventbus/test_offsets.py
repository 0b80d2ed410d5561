"""The offsets that PostgreSQL keeps: moved only from where they were left, on the server where they
were.
"""

import pytest

from eventbus.consume import offsets
from eventbus.consume.offsets import KeptOffset, Move
from eventbus.models import ConsumerOffset, ProcessedEvent

pytestmark = pytest.mark.django_db

GROUP, TOPIC, TOPIC_ID = "g", "notes", "an-id"


@pytest.fixture(autouse=True)
def two_partitions() -> None:
    offsets.put(GROUP, TOPIC, TOPIC_ID, {0: 10, 1: 20})


def kept() -> dict[int, int]:
    return {number: at.next_offset for number, at in offsets.kept(GROUP, TOPIC, range(5)).items()}


def advance(moves: dict[int, Move], topic_id: str = TOPIC_ID, server: str = "") -> set[int]:
    return offsets.advance(GROUP, TOPIC, topic_id, server or offsets.server(), moves)


def test_what_was_put_is_kept_with_the_topic_it_belongs_to() -> None:
    assert offsets.kept(GROUP, TOPIC, [0, 7]) == {0: KeptOffset(10, TOPIC_ID)}
    offsets.put(GROUP, TOPIC, "another", {0: 3})
    assert offsets.kept(GROUP, TOPIC, [0, 1]) == {
        0: KeptOffset(3, "another"),
        1: KeptOffset(20, TOPIC_ID),
    }


def test_offsets_move_from_where_they_were_left() -> None:
    assert advance({0: Move(10, 15), 1: Move(20, 21)}) == {0, 1}
    assert kept() == {0: 15, 1: 21}


def test_an_offset_that_is_elsewhere_stays_there_and_the_others_move() -> None:
    """As after a restore: this database has not seen what the worker has done."""
    assert advance({0: Move(12, 15), 1: Move(20, 21), 4: Move(0, 1)}) == {1}
    assert kept() == {0: 10, 1: 21}


def test_nothing_moves_on_another_server_or_for_another_topic() -> None:
    assert advance({0: Move(10, 15)}, server="2026-01-01 00:00:00+00 5") == set()
    assert advance({0: Move(10, 15)}, topic_id="another") == set()
    assert kept() == {0: 10, 1: 20}


def test_groups_and_topics_do_not_meet() -> None:
    offsets.put("h", TOPIC, TOPIC_ID, {0: 1})
    offsets.put(GROUP, "others", TOPIC_ID, {0: 2})
    assert kept() == {0: 10, 1: 20}
    assert ConsumerOffset.objects.filter(group__in=[GROUP, "h"]).count() == 4


def test_a_database_in_which_nothing_was_processed_knows_that() -> None:
    offsets.begin("h", TOPIC, 2)
    begun = offsets.kept("h", TOPIC, range(5))
    assert begun == dict.fromkeys((0, 1), KeptOffset(0, ""))
    assert all(one.is_untouched for one in begun.values())


def test_a_database_that_is_in_use_does_not_begin_anew() -> None:
    offsets.begin(GROUP, TOPIC, 2)
    assert kept() == {0: 10, 1: 20}
    ProcessedEvent.objects.create(event_id=1, actor_id=1, type="note")
    offsets.begin("h", TOPIC, 2)
    assert offsets.kept("h", TOPIC, range(5)) == {}
