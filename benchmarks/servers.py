"""The same application under granian and gunicorn, with different numbers of threads."""

import importlib.util
import sys

from benchmarks import api, http_load, requests, tables, workload
from benchmarks.stand import Stand

THREADS = (1, 2, 4, 8)
CONNECTIONS = 32
GUNICORN = [
    *(sys.executable, "-m", "gunicorn", "feedsite.wsgi:application", "--worker-class", "gthread"),
    *("--bind", "127.0.0.1:{port}", "--workers", "2", "--keep-alive", "75", "--log-level", "warning"),
]


def run(stand: Stand, quick: bool) -> None:
    """Measure POST and GET under each server with 2 workers."""
    seconds = 2.0 if quick else 3.0
    workload.load(workload.even_network(followers=20, authors=len(api.USERS), users=500))
    api.fill_feeds()
    rows: list[list[tables.Cell]] = []
    for threads in THREADS:
        with stand.api(BLOCKING_THREADS=str(threads)) as port:
            rows.append([f"granian, 2×{threads}", *_measure(port, seconds)])
    if importlib.util.find_spec("gunicorn"):
        for threads in THREADS:
            with stand.api([*GUNICORN, "--threads", str(threads)]) as port:
                rows.append([f"gunicorn gthread, 2×{threads}", *_measure(port, seconds)])
    head = ["server, workers×threads", "POST/s", "POST p99 ms", "GET/s", "GET p99 ms", "errors"]
    tables.table(f"WSGI servers at {CONNECTIONS} connections", head, rows)
    if not importlib.util.find_spec("gunicorn"):
        tables.note("gunicorn was left out: it is not installed.")


def _measure(port: int, seconds: float) -> list[tables.Cell]:
    tables.progress(f"server at port {port}")
    cells: list[tables.Cell] = []
    errors = 0
    for batch in (requests.posts(api.USERS), requests.feeds(api.USERS)):
        http_load.closed(port, batch, CONNECTIONS, api.WARM_UP_SECONDS)
        load = http_load.closed(port, batch, CONNECTIONS, seconds)
        cells += [load.rate, load.p99_ms]
        errors += load.errors
    return [*cells, str(errors)]
