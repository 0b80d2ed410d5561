"""A real Apache Kafka, one node in KRaft mode, from its published jars: what `make test-kafka` runs the tests on."""

import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

from feedsite.embedded.kafka import answers
from feedsite.embedded.processes import free_port

POM = Path(__file__).with_name("pom.xml")
JARS = Path(__file__).resolve().parents[2] / ".local" / "kafka"
OLDEST_JAVA = 17
START_SECONDS = 60.0

# Small and quick: one node, no wait for members who might join, and sessions as short as the tests like them.
PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
log.dirs={directory}/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=2
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=6000
group.consumer.min.heartbeat.interval.ms=500
group.consumer.heartbeat.interval.ms=1000
"""


class CannotRun(Exception):
    """Apache Kafka cannot run here; the message is one sentence for the person at the terminal."""


class ApacheKafka:
    """A broker that keeps its data over restarts, until `remove`."""

    def __init__(self) -> None:
        check()
        _download()
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self._directory = Path(tempfile.mkdtemp(prefix="feed-tests-kafka-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._properties = self._directory / "server.properties"
        self._properties.write_text(
            PROPERTIES.format(port=port, controller_port=free_port(), directory=self._directory)
        )
        cluster = str(uuid.uuid4())
        self._java("kafka.tools.StorageTool", "format", "--standalone", "-t", cluster, "-c", self._properties).wait()

    def start(self) -> None:
        """Start the broker and return once it answers."""
        self._process = self._java("kafka.Kafka", self._properties)
        deadline = time.monotonic() + START_SECONDS
        while not answers(self.address):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise CannotRun(f"Apache Kafka did not start: {self._log.read_text()[-2_000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """End the broker at once; what it has acknowledged is with the operating system at least."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the broker in an orderly way."""
        self._end(signal.SIGTERM)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self._directory / "kafka.log"

    def _java(self, main: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        command = ["java", "-Xmx512m", "-cp", f"{JARS}/*", main, *map(str, arguments)]
        with self._log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()


def check() -> None:
    """Raise `CannotRun` where Java or Maven is missing."""
    if shutil.which("mvn") is None:
        raise CannotRun("Maven is missing: install it to run the tests on Apache Kafka (Debian: apt install maven).")
    if _java_version() < OLDEST_JAVA:
        raise CannotRun(
            f"Java {OLDEST_JAVA} or newer is missing: install it to run the tests on Apache Kafka "
            f"(Debian: apt install openjdk-{OLDEST_JAVA}-jre-headless)."
        )


def _java_version() -> int:
    """Return the major version of the Java in the path, 0 if there is none."""
    if shutil.which("java") is None:
        return 0
    version = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)
    number = version.stderr.partition('version "')[2].partition(".")[0].partition('"')[0].partition("-")[0]
    return int(number) if number.isdecimal() else 0


def _download() -> None:
    """Have Maven put the jars into `JARS`, unless those that the POM names are there."""
    wanted, done = POM.read_text(), JARS / "pom.xml"
    if done.exists() and done.read_text() == wanted:
        return
    shutil.rmtree(JARS, ignore_errors=True)
    command = ["mvn", "--quiet", "--batch-mode", "-f", str(POM), "dependency:copy-dependencies"]
    maven = subprocess.run([*command, f"-DoutputDirectory={JARS}", "-DincludeScope=runtime"], check=False)
    if maven.returncode != 0:
        raise CannotRun("Maven could not fetch the jars of Apache Kafka; what it said is above.")
    done.write_text(wanted)
