"""Workers are killed at every point that matters; nothing is lost or doubled."""

import pytest
from django.db.models.functions import Now

from eventbus.models import Erasure
from feeds.models import Horizon
from feeds.partitions import first_id_of, layout
from posts.models import Post
from tests.crash.network import Network
from tests.crash.victims import dying, wait_for_death
from tests.e2e.system import wait_until
from tests.feeds.partitioning import lay_out, partitions_undone

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]


@pytest.fixture(scope="module")
def api_processes() -> int:
    return 1


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
    "point", ["before erased posts leave cached pages", "before a part of an erasure is noted"]
)
def test_a_worker_killed_while_it_erases_a_user(point: str, network: Network) -> None:
    network.post()
    worker = network.system.worker()
    network.prove()
    network.look()
    assert worker.stop() == 0
    event_id = network.erase(network.authors[0])
    wait_for_death(dying(network.system, point, "run_fanout"))
    Erasure.objects.update(due_at=Now())  # as if some seconds had passed
    network.system.worker()
    network.post()
    wait_until(lambda: Erasure.objects.get(event_id=event_id).finished_at)
    network.prove()
