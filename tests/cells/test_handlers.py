"""What each of two cells makes of the same log: the feeds of its own readers, and nobody else's."""

import random

import pytest
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventbus import cells
from eventbus.cells import Cell
from eventbus.database.current import atomic
from feeds import imports, verification
from feeds.models import RESTING, Feed, FeedEntry, Follow, Mute
from tests.cells.maps import DATABASES
from tests.feeds.model import (
    Step,
    expected_feed,
    expected_posts,
    feed,
    history,
    shown_post,
    some_step,
    with_repetitions,
)
from tests.feeds.test_convergence import deliver

pytestmark = pytest.mark.django_db(databases=DATABASES)

USERS = range(1, 7)
# Of slots 143, 286, 429 and 572, 715, 858.
IN_A, IN_B = (1, 2, 3), (4, 5, 6)


def test_readers_of_both_cells_are_among_the_users(two_cells: list[Cell]) -> None:
    a, b = two_cells
    assert {user for user in USERS if a.serves(user)} == set(IN_A)
    assert {user for user in USERS if b.serves(user)} == set(IN_B)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(some_step(USERS, "mute"), max_size=40), st.integers(0, 2**32), st.booleans())
def test_each_reader_gets_the_join_in_their_cell_whatever_the_order(
    two_cells: list[Cell], steps: list[Step], seed: int, shuffled: bool
) -> None:
    facts = history(steps)
    chance = random.Random(seed)
    delivered = with_repetitions(facts, chance)
    if shuffled:
        chance.shuffle(delivered)
    posts = expected_posts(facts)
    for cell in two_cells:
        with cells.on(cell), atomic():
            deliver(delivered, chance)
            for user in filter(cell.serves, USERS):
                assert feed(user) == expected_feed(facts, user)
            for post_id in {fact.post_id for fact in facts if hasattr(fact, "content")}:
                assert shown_post(post_id) == posts.get(post_id)
            assert verification.verify().equal
            assert_no_feed_of_others(cell)
            transaction.set_rollback(True, using=cell.alias)


def assert_no_feed_of_others(cell: Cell) -> None:
    readers = {*Follow.objects.values_list("follower_id", flat=True)}
    readers |= {*FeedEntry.objects.values_list("user_id", flat=True)}
    readers |= {*Mute.objects.values_list("user_id", flat=True)}
    assert not [reader for reader in readers if not cell.holds_user(reader)]
    for row in Feed.objects.all():
        if not cell.holds_user(row.user_id):
            assert (row.idle, row.floor) == (True, RESTING)


def test_an_import_leaves_followers_to_their_cells(two_cells: list[Cell]) -> None:
    pairs = [(one, other) for one in USERS for other in USERS if one != other]
    for cell in two_cells:
        with cells.on(cell):
            done = imports.import_follows(pairs)
            assert (done.lines, done.new_follows) == (30, 15)
            assert verification.verify().equal
            assert_no_feed_of_others(cell)
