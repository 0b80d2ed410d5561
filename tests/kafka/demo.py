"""The demo on an Apache Kafka of its own instead of the embedded broker: what `make demo
KAFKA=apache` runs.

Its data stay in `.local/apache-kafka` (`FEED_DATA_DIR`), as those of the other servers do.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from tests.kafka.apache import ApacheKafka, CannotRun

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    data_dir = Path(os.environ.get("FEED_DATA_DIR") or ROOT / ".local").resolve()
    try:
        broker = ApacheKafka(directory=data_dir / "apache-kafka")
        try:
            broker.start()
            return run_demo(broker.address)
        finally:
            broker.stop()
    except CannotRun as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command's message
        return 2


def run_demo(address: str) -> int:
    """Run the demo with this Kafka to its end, and return its exit status."""
    environment = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": address}
    command = [sys.executable, str(ROOT / "manage.py"), "demo", *sys.argv[1:]]
    # In a group of its own, so that a Ctrl-C comes to it once, through here: a second one would be
    # impatience.
    demo = subprocess.Popen(command, env=environment, process_group=0)

    def pass_on(number: int, _frame: FrameType | None) -> None:
        demo.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    return demo.wait()


if __name__ == "__main__":
    sys.exit(main())
