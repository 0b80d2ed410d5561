"""The demo's last line: what the processes that are there tell, whichever is down."""

from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from feedsite.demo import pulse
from feedsite.demo.ports import Places
from feedsite.embedded.processes import free_port


class Told:
    """The metrics of one process, at a port, until `end`."""

    def __init__(self) -> None:
        self.port = free_port()
        registry = CollectorRegistry()
        self.rows = Counter("fanout_rows", "", registry=registry)
        labels = ["group", "topic", "partition"]
        self.lag = Gauge("kafka_consumer_lag", "", labels, registry=registry)
        self.dead_letters = Gauge("dlq_size", "", registry=registry)
        self._server, self._thread = start_http_server(self.port, "127.0.0.1", registry)

    def set_lag(self, lag: float) -> None:
        self.lag.labels("fanout", "feed-events", "0").set(lag)

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def processes() -> Iterator[list[Told]]:
    started = [Told(), Told(), Told()]
    yield started
    for process in started:
        process.end()


def places(processes: list[Told]) -> Places:
    return Places(*(process.port for process in processes))


def shown(before: pulse.Reading | None, now: pulse.Reading | None) -> str:
    """Return the line, of two moments made one second apart."""
    assert before
    assert now
    return pulse.line(before._replace(at=0.0), now._replace(at=1.0))


def test_it_tells_what_has_happened_between_two_moments(processes: list[Told]) -> None:
    _api, run_fanout, run_dlq = processes
    before = pulse.read(places(processes))
    run_fanout.rows.inc(7)
    run_fanout.set_lag(2)
    run_dlq.set_lag(3)
    line = shown(before, pulse.read(places(processes)))
    assert "7 feed rows/s" in line
    assert "lag 3 " in line


def test_while_a_worker_is_down_the_others_are_told_of(
    processes: list[Told],
) -> None:
    _api, run_fanout, run_dlq = processes
    run_fanout.rows.inc(1_000)
    run_fanout.set_lag(5)
    before = pulse.read(places(processes))
    run_fanout.end()
    run_dlq.dead_letters.inc(100)
    run_dlq.set_lag(50)
    line = shown(before, pulse.read(places(processes)))
    assert "0 feed rows/s" in line
    assert "lag 50 · dead letters 100" in line


def test_a_worker_that_is_back_is_not_told_to_have_done_all_at_once(
    processes: list[Told],
) -> None:
    _api, run_fanout, _run_dlq = processes
    run_fanout.rows.inc(1_000)
    everybody = pulse.read(places(processes))
    assert everybody
    told = {port: all_of for port, all_of in everybody.told.items() if port != run_fanout.port}
    assert "0 feed rows/s" in shown(everybody._replace(told=told), everybody)


def test_what_nobody_knows_is_said_to_be_unknown(processes: list[Told]) -> None:
    processes[1].set_lag(float("nan"))
    now = pulse.read(places(processes))
    assert "lag unknown" in shown(now, now)
    for process in processes:
        process.end()
    assert pulse.read(places(processes)) is None
