"""The demo on an Apache Kafka of its own instead of the embedded broker: what `make demo
KAFKA=apache` runs.

Its data stay in `.local/apache-kafka` (`FEED_DATA_DIR`), as those of the other servers do.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from feedsite.demo.log import Log
from feedsite.demo.signals import SIGNALS, hold
from feedsite.embedded.processes import command_line
from tests.kafka.apache import ApacheKafka, CannotRun

ROOT = Path(__file__).resolve().parents[2]
STOP_SECONDS = 60.0

log = Log(sys.stdout)


class Stopped(Exception):
    """Someone asked to stop before the demo was there to be asked."""


def main() -> int:
    """Run the broker and the demo until a signal; return the exit status of the demo."""
    data_dir = Path(os.environ.get("FEED_DATA_DIR") or ROOT / ".local").resolve()
    directory = data_dir / "apache-kafka"
    for number in SIGNALS:
        signal.signal(number, _stop_starting)
    try:
        with _alone(directory):
            _end_left_over(directory)
            return _run(directory)
    except Stopped:
        return 0
    except CannotRun as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command's message
        return 2


def _run(directory: Path) -> int:
    log.say("Starting Apache Kafka, which Maven fetches the first time.")
    broker = ApacheKafka(directory=directory)
    try:
        broker.launch()
        _write_record(directory, kafka=broker.pid)
        broker.wait()
        log.say(f"Apache Kafka: started, {broker.address}, pid {broker.pid}")
        demo = _start_demo(broker.address)
        _write_record(directory, kafka=broker.pid, demo=demo.pid)
        return demo.wait()
    finally:
        broker.stop()
        log.say("Apache Kafka: stopped")


def _start_demo(address: str) -> "subprocess.Popen[bytes]":
    """Start the demo, to which signals go from now on."""
    environment = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": address}
    command = [sys.executable, str(ROOT / "manage.py"), "demo", *sys.argv[1:]]
    # A signal that comes meanwhile waits until it can be passed on, and there until it is expected.
    hold()
    # In a group of its own, so that a Ctrl-C comes to it once, through here: a second one would be
    # impatience.
    demo = subprocess.Popen(command, env=environment, process_group=0)

    def pass_on(number: int, _frame: FrameType | None) -> None:
        demo.send_signal(number)

    for number in SIGNALS:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return demo


def _stop_starting(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Stopped


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep others from the directory: two brokers on one would spoil its data."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CannotRun(f"A demo is running already on {directory.parent}.") from error
        yield


# Nothing can stop what was started here by one that was killed, so the next one does.


def _write_record(directory: Path, **pids: int) -> None:
    (directory / "processes.json").write_text(json.dumps(pids))


def _end_left_over(directory: Path) -> None:
    """End the processes of an earlier one, the demo first: it has something to lose."""
    try:
        pids = json.loads((directory / "processes.json").read_text())
    except (FileNotFoundError, ValueError):
        return
    for name, mark in (("demo", str(ROOT / "manage.py")), ("kafka", str(directory))):
        pid = pids.get(name, 0)
        if not any(mark in word for word in command_line(pid)):
            continue
        log.say(f"Ending {name}, left over from a demo that was killed, pid {pid}.")
        process = psutil.Process(pid)
        process.terminate()
        if psutil.wait_procs([process], STOP_SECONDS)[1]:
            process.kill()


if __name__ == "__main__":
    sys.exit(main())
