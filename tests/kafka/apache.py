"""A real Apache Kafka, nodes in KRaft mode, from its published jars: what `make test-kafka` runs
the tests on.
"""

import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

from feedsite.embedded.kafka import answers
from feedsite.embedded.processes import free_port

POM = Path(__file__).with_name("pom.xml")
JARS = Path(__file__).resolve().parents[2] / ".local" / "kafka"
OLDEST_JAVA = 17
START_SECONDS = 60.0
STOP_SECONDS = 60.0
# A node that lives for a minute spends much of it on compiling itself well.
QUICK_START = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

# Small and quick: no wait for members who might join, sessions as short as the tests like them, and
# a broker that is gone is missed soon.
PROPERTIES = """\
process.roles=broker,controller
node.id={node}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
controller.quorum.voters={voters}
log.dirs={directory}/data
auto.create.topics.enable=false
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
offsets.topic.replication.factor={copies}
offsets.topic.num.partitions=2
transaction.state.log.replication.factor={copies}
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
    """A broker that keeps its data over restarts, until `remove`; by default alone, else one of a
    `cluster`.

    With a `directory` of its own it goes on with what is there.
    """

    def __init__(
        self,
        node: int = 1,
        controller_ports: Sequence[int] = (),
        cluster_id: str = "",
        directory: Path | None = None,
    ) -> None:
        prepare()
        port = free_port()
        ports = controller_ports or (free_port(),)
        self.node = node
        self.address = f"127.0.0.1:{port}"
        self._directory = directory or Path(tempfile.mkdtemp(prefix="feed-tests-kafka-"))
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._properties = self._directory / "server.properties"
        self._properties.write_text(
            PROPERTIES.format(
                node=node,
                port=port,
                controller_port=ports[node - 1],
                voters=",".join(
                    f"{number}@127.0.0.1:{port}" for number, port in enumerate(ports, start=1)
                ),
                copies=len(ports),
                directory=self._directory,
            )
        )
        cluster_id = cluster_id or str(uuid.uuid4())
        # Data that are there keep the id they have.
        # Waited for at the first start, so that the nodes of a cluster do it side by side.
        self._formatting = self._java(
            "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", self._properties
        )

    def start(self) -> None:
        """Start the broker and return once it answers."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start the broker, and do not wait for it."""
        self._formatting.wait()
        self._process = self._java("kafka.Kafka", self._properties)

    @property
    def pid(self) -> int:
        """The process id of the broker that was launched last."""
        assert self._process is not None
        return self._process.pid

    def wait(self) -> None:
        """Return once the broker answers; of a cluster it does so only when most are up."""
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while not answers(self.address):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise CannotRun(f"Apache Kafka did not start: {self._log.read_text()[-2_000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """End the broker at once; what it has acknowledged is with the operating system at
        least.
        """
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the broker in an orderly way."""
        self._end(signal.SIGTERM)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self._directory / "kafka.log"

    def _java(self, main: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        command = ["java", "-Xmx512m", *QUICK_START, "-cp", f"{JARS}/*", main, *map(str, arguments)]
        with self._log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def _end(self, number: signal.Signals) -> None:
        self._formatting.wait()
        if self._process is not None:
            self._process.send_signal(number)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def cluster(size: int) -> list[ApacheKafka]:
    """Return the brokers of one cluster, not started; each is a controller too."""
    ports = [free_port() for _ in range(size)]
    cluster_id = str(uuid.uuid4())
    return [ApacheKafka(node, ports, cluster_id) for node in range(1, size + 1)]


def start_all(brokers: Iterable[ApacheKafka]) -> None:
    """Start brokers that cannot do without each other."""
    brokers = list(brokers)
    for broker in brokers:
        broker.launch()
    for broker in brokers:
        broker.wait()


def prepare() -> None:
    """Have all that a broker needs.

    Raises `CannotRun` where Java or Maven is missing, or Maven fails.
    """
    _check()
    _download()


def _check() -> None:
    if shutil.which("mvn") is None:
        raise CannotRun(
            "Maven is missing: install it to run the tests on Apache Kafka (Debian: apt install maven)."
        )
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
    number = (
        version.stderr.partition('version "')[2]
        .partition(".")[0]
        .partition('"')[0]
        .partition("-")[0]
    )
    return int(number) if number.isdecimal() else 0


def _download() -> None:
    """Have Maven put the jars into `JARS`, unless those that the POM names are there."""
    wanted, done = POM.read_text(), JARS / "pom.xml"
    if done.exists() and done.read_text() == wanted:
        return
    shutil.rmtree(JARS, ignore_errors=True)
    command = ["mvn", "--quiet", "--batch-mode", "-f", str(POM), "dependency:copy-dependencies"]
    maven = subprocess.run(
        [*command, f"-DoutputDirectory={JARS}", "-DincludeScope=runtime"], check=False
    )
    if maven.returncode != 0:
        raise CannotRun("Maven could not fetch the jars of Apache Kafka; what it said is above.")
    done.write_text(wanted)
