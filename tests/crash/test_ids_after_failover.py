"""PostgreSQL goes back to before some leases, as a standby that takes over may: nobody else gets
their nodes.
"""

from collections.abc import Callable
from functools import partial

import pytest
from django.db import connection

from eventbus.exceptions import IdsUnavailable
from eventbus.ids import node_lease
from eventbus.ids.node_lease import LeaseKeeper
from tests.crash import outages
from tests.e2e.system import wait_until
from tests.eventbus.journal import execute

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.django_db(transaction=True),
    outages.needs_embedded_postgres,
]

LEASES = 20


@pytest.fixture
def go_back(transactional_db: None) -> Callable[[], None]:
    """Return what puts PostgreSQL back to the time of this fixture, by a recovery that begins a new
    timeline.
    """
    node_lease.next_id()
    node_lease.release()
    copy = outages.copy_of_postgres()
    return partial(outages.fail_over_to, copy)


def timeline() -> str:
    [(wal_file,)] = execute("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
    return str(wal_file)[:8]


def node_of(keeper: LeaseKeeper) -> int:
    assert keeper.generator is not None
    return keeper.generator.node_id


def can_mint(keeper: LeaseKeeper) -> bool:
    try:
        keeper.next_id()
    except IdsUnavailable:
        return False
    return True


def leased(count: int) -> list[LeaseKeeper]:
    keepers = [LeaseKeeper() for _ in range(count)]
    for keeper in keepers:
        wait_until(lambda keeper=keeper: can_mint(keeper))  # type: ignore[misc]
    return keepers


def test_nodes_whose_lease_postgresql_has_forgotten_are_given_to_nobody_else(
    go_back: Callable[[], None],
) -> None:
    forgotten = leased(LEASES)
    nodes = {node_of(keeper) for keeper in forgotten}
    before = timeline()
    go_back()
    assert timeline() != before

    # Also to none of their holders, each of whom finds another as soon as it looks.
    successors = leased(LEASES)
    for keeper in forgotten:
        keeper.renew_soon()
    wait_until(lambda: not nodes & {node_of(keeper) for keeper in forgotten})
    assert not nodes & {node_of(keeper) for keeper in successors}

    for keeper in forgotten + successors:
        keeper.stop(release=False)
    connection.close()
