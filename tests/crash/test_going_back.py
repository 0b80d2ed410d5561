"""PostgreSQL goes back in time while Kafka does not, as after a failover or a restore; nothing is
lost or doubled.
"""

from collections.abc import Iterator

import pytest
from django.db import connection, transaction

from eventbus import kafka, producer
from eventbus.models import ConsumerOffset, DeadLetter, ProcessedEvent
from tests.crash import outages
from tests.crash.load import Load
from tests.crash.network import Network
from tests.e2e.system import settled, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]

# What API and workers share outside of the log: a server that went back has older ones of these
# too, which is for the clock of the ids to bear and not shown here.
NOT_TAKEN_BACK = {"django_migrations", "snowflake_nodes", "worker_heartbeats"}


class Copy:
    """The database as it was at one moment."""

    def __init__(self) -> None:
        self._tables = [
            table for table in connection.introspection.table_names() if table not in NOT_TAKEN_BACK
        ]
        self._tables = [table for table in self._tables if not table.startswith("feed_entries_")]
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("CREATE SCHEMA copy")
            for table in self._tables:
                cursor.execute(f"CREATE TABLE copy.{table} AS TABLE public.{table}")

    def restore(self) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"TRUNCATE {', '.join(f'public.{table}' for table in self._tables)}")
            for table in self._tables:
                cursor.execute(
                    f"INSERT INTO public.{table} OVERRIDING SYSTEM VALUE TABLE copy.{table}"
                )

    def forget(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("DROP SCHEMA IF EXISTS copy CASCADE")


@pytest.fixture
def copy(network: Network) -> Iterator[Copy]:
    """A copy of the database after some posts, which holds the offsets of then."""
    network.system.worker()
    network.post()
    network.prove()
    wait_until(lambda: ConsumerOffset.objects.filter(group=kafka.FANOUT_GROUP).exists())
    copy = Copy()
    yield copy
    copy.forget()


def test_workers_started_on_an_older_database_process_again_what_it_lacks(
    network: Network, copy: Copy
) -> None:
    """Kafka has the offsets of the end of the log committed; PostgreSQL those of its own time."""
    network.post()
    network.prove()
    for process in network.system.processes:
        process.kill()
    copy.restore()
    assert not settled(network.events)
    network.system.api()
    network.system.worker()
    network.prove()


def test_workers_that_run_on_notice_an_older_database_by_themselves(
    network: Network, copy: Copy
) -> None:
    """Nothing is published afterwards that would make them look."""
    network.post()
    network.prove()
    copy.restore()
    assert not settled(network.events)
    network.prove()
    assert all(process.running() for process in network.system.processes)


def test_dead_letters_that_an_older_database_lacks_are_stored_again(
    network: Network, copy: Copy
) -> None:
    store = network.system.command("run_dlq")
    poison = [b"no event, before", b"no event, after"]
    producer.publish_record(kafka.FEED_EVENTS, b"1", poison[0])
    wait_until(lambda: stored(poison) == 1)
    copy.forget()
    older = Copy()
    producer.publish_record(kafka.FEED_EVENTS, b"1", poison[1])
    wait_until(lambda: stored(poison) == 2)
    older.restore()
    wait_until(lambda: stored(poison) == 2)
    network.prove()
    assert store.running()
    assert ProcessedEvent.objects.count() == len(network.events)


@outages.needs_embedded_postgres
def test_a_standby_that_is_seconds_behind_takes_over_under_load(network: Network) -> None:
    """The primary can only be read at first, as one that is made a standby; every 202 counts, for
    Kafka has it.
    """
    workers = [network.system.worker(), network.system.worker()]
    with Load(network) as load:
        wait_until(lambda: load.posts > 10)
        known = network.events.copy()
        wait_until(lambda: settled(known))
        standby = outages.copy_of_postgres()
        known = network.events.copy()
        wait_until(lambda: len(network.events - known) > 50)
        unknown = network.events - known
        wait_until(lambda: settled(unknown))
        outages.make_read_only()
        wait_until(lambda: load.answers["503"] > 2)
        outages.fail_over_to(standby)
        accepted = load.posts
        wait_until(lambda: load.posts > accepted + 10)
    network.prove()
    assert all(worker.running() for worker in workers)
    assert any("database_behind" in worker.log.read_text() for worker in workers)


def stored(values: list[bytes]) -> int:
    return DeadLetter.objects.filter(value__in=values).count()
