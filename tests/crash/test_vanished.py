"""The machine of PostgreSQL vanishes without a word: no answer, no reset.

Whoever waits for it notices and moves.
"""

import pytest
from django.db import connection

from tests.crash import elsewhere
from tests.crash.network import Network
from tests.e2e.system import environment, is_ready, settled, wait_until
from tests.forwarder import Forwarder

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]

needs_a_namespace = pytest.mark.skipif(
    not elsewhere.can_be_had(), reason="makes a network namespace: needs root and iproute2"
)


@needs_a_namespace
def test_postgresql_is_found_at_its_next_address_once_its_machine_has_vanished(
    network: Network,
) -> None:
    """The kernel's own patience is a quarter of an hour; the sessions' is 15 s."""
    system = network.system
    with elsewhere.machine(int(connection.settings_dict["PORT"])) as machine:
        url = environment()["DATABASE_URL"].replace("@127.0.0.1", f"@{machine.address},127.0.0.1")
        system.processes[0].kill()
        system.api(DATABASE_URL=url)
        worker = system.worker(DATABASE_URL=url)
        network.post()
        network.prove()
        machine.vanish()
        network.post()
        wait_until(lambda: settled(network.events))
        wait_until(lambda: is_ready(system.url))
        network.prove()
        assert worker.running()


def test_a_worker_leaves_a_postgresql_that_vanished_behind_a_proxy(network: Network) -> None:
    """No time-out of TCP's ends the connection, which is to the proxy."""
    port = int(connection.settings_dict["PORT"])
    way = Forwarder(port)
    url = environment()["DATABASE_URL"].replace(f":{port}/", f":{way.port}/")
    worker = network.system.command(
        "-m", "tests.crash.impatient", "run_fanout", script="-u", DATABASE_URL=url
    )
    network.post()
    network.prove()
    way.freeze()
    network.post()
    network.prove()
    assert worker.running()
    way.close()
