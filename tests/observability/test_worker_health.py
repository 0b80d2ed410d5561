"""What a worker's probes say: alive, ready, stuck."""

import socket

import pytest
from django.db import connection, transaction

from feedsite.embedded.processes import free_port
from tests.e2e.system import PATIENCE, System, wait_until
from tests.observability.processes import Worker

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]


@pytest.mark.parametrize("command", ["run_fanout", "run_dlq"])
def test_a_worker_that_has_what_it_needs_is_alive_and_ready(system: System, command: str) -> None:
    worker = Worker(system, command)
    wait_until(lambda: worker.answers("/readyz"))
    ready = worker.get("/readyz")
    assert (ready.status_code, ready.text) == (
        200,
        "postgresql: ok\nkafka: ok\nredis: ok\nprogress: ok\n",
    )
    assert worker.get("/healthz").text == "ok\n"
    assert worker.get("/other").status_code == 404


def test_a_worker_whose_batch_does_not_get_done_is_alive_and_not_ready_until_it_goes_on(
    system: System,
) -> None:
    worker = Worker(system, "run_fanout", WORKER_STUCK_SECONDS="2")
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE processed_events")
        with system.client(1) as client:
            for number in range(3):
                assert client.post("/posts", json={"content": f"post {number}"}).status_code == 202
        wait_until(lambda: not worker.answers("/readyz"))
        ready = worker.get("/readyz")
        assert ready.status_code == 503
        assert "postgresql: ok\n" in ready.text
        assert "progress: stuck, 3 records wait and none was done for " in ready.text
        assert worker.lag() == 3
        assert max(worker.samples("worker_stuck_seconds", group="fanout")) > 2
        assert worker.get("/healthz").status_code == 200
        wait_until(lambda: "worker_stuck" in worker.log.read_text())
    wait_until(lambda: worker.answers("/readyz"))
    assert worker.lag() == 0
    assert worker.samples("worker_stuck_seconds", group="fanout") == [0]


def test_a_worker_in_which_the_loop_hangs_longer_than_kafka_waits_is_not_alive(
    system: System,
) -> None:
    patience = {"KAFKA_MAX_POLL_INTERVAL_MS": "3000"}
    worker = Worker(system, "run_fanout", **patience)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE processed_events")
        with system.client(1) as client:
            assert client.post("/posts", json={"content": "a post"}).status_code == 202
        wait_until(lambda: not worker.answers("/healthz"))
        assert worker.get("/healthz").text.startswith("hangs: Kafka has not been polled for ")
    wait_until(lambda: worker.answers("/healthz"))


def test_a_worker_without_postgresql_is_alive_and_not_ready_and_without_redis_ready(
    system: System,
) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    worker = Worker(
        system,
        "run_dlq",
        DATABASE_URL=f"postgresql://{nowhere}/none",
        REDIS_URL=f"redis://{nowhere}/0",
    )
    # Until the watches have had their answers.
    wait_until(lambda: "postgresql: unreachable" in worker.get("/readyz").text)
    wait_until(lambda: "redis: degraded" in worker.get("/readyz").text)
    assert worker.get("/readyz").status_code == 503
    assert worker.get("/healthz").status_code == 200
    worker.process.stop()

    worker = Worker(system, "run_dlq", REDIS_URL=f"redis://{nowhere}/0")
    wait_until(lambda: "redis: degraded, unreachable" in worker.get("/readyz").text)
    wait_until(lambda: worker.answers("/readyz"))


def test_a_metrics_port_that_is_taken_is_said_in_one_sentence(system: System) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        process = system.command("run_dlq", "--metrics-port", str(port))
        assert process.popen.wait(PATIENCE) == 1
    assert process.log.read_text().startswith(f"error: the metrics port {port} cannot be had: ")
