"""What a cell holds is what its database says, whatever the map of a process says meanwhile."""

import json
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from eventbus import cellmap, cells, identity
from eventbus.cells import Cell
from eventbus.models import CellIdentity, ProcessedEvent
from feeds import imports, rebuild
from feeds.models import RESTING, Feed, Follow
from tests.cells.maps import DATABASES
from tests.factories import UserFollowedFactory, apply
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True, databases=DATABASES)

# Of slots that a serves, and b.
IN_A, IN_B = 1, 4
EVERYTHING = "0-1023"


def go_by(the_map: str, **changes_of_a: str) -> None:
    """Have this process take a map in which cell a is described otherwise."""
    changed: dict[str, Any] = json.loads(the_map)
    changed["cells"]["a"] |= changes_of_a
    cells.use(cellmap.read(json.dumps(changed)), "a")


def followers() -> set[int]:
    return set(Follow.objects.values_list("follower_id", flat=True))


def test_a_running_worker_takes_on_nobody_of_whom_its_database_knows_nothing(
    two_cells: list[Cell], the_map: str
) -> None:
    """Or it would have the follows of now, and never those of before."""
    go_by(the_map, holds=EVERYTHING)
    Worker().process(UserFollowedFactory(follower_id=IN_B, followee_id=IN_A))
    assert imports.import_follows([(IN_B, IN_A)]).new_follows == 0
    assert followers() == set()
    Worker().process(UserFollowedFactory(follower_id=IN_A, followee_id=IN_B))
    rebuild.rebuild([IN_B])
    assert Feed.objects.get(user_id=IN_B).floor == RESTING


def test_a_running_worker_leaves_out_nobody_whom_its_database_holds(
    two_cells: list[Cell], the_map: str
) -> None:
    """As a process that has read a map in which readers have gone, or one in which they have not
    come yet.
    """
    CellIdentity.objects.update(holds=EVERYTHING)
    Worker().process(UserFollowedFactory(follower_id=IN_B, followee_id=IN_A))
    assert followers() == {IN_B}
    CellIdentity.objects.update(holds="0-511")
    apply(UserFollowedFactory(follower_id=IN_B + 1, followee_id=IN_A))
    assert followers() == {IN_B}, "at once, in the very next transaction"


def test_a_worker_whose_database_turns_out_to_be_another_cells_ends(two_cells: list[Cell]) -> None:
    """Without a dead letter: no event is at fault."""
    CellIdentity.objects.update(name="b")
    worker = Worker()
    with pytest.raises(ImproperlyConfigured, match="The database of cell a is that of cell b"):
        worker.process(UserFollowedFactory(follower_id=IN_A, followee_id=IN_B))
    assert worker.dead_letters == []
    assert not ProcessedEvent.objects.exists()


def test_a_map_may_say_less_than_the_database_holds_and_not_more(
    two_cells: list[Cell], the_map: str
) -> None:
    """Less, between the map and the database being written when cells are tidied up."""
    a = two_cells[0]
    CellIdentity.objects.update(holds=EVERYTHING)
    assert identity.problem(a) == ""
    CellIdentity.objects.update(holds="0-500")
    assert identity.problem(a) == "Cell a holds 0-511 here, and 0-500 by its database"


def test_with_one_cell_nothing_is_asked(django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        assert len(identity.held()) == cellmap.SLOTS
        assert identity.holds_sql("user_id") == "true"
