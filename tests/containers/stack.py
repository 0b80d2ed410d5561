"""The system of `docker-compose.yml` as a project of its own: own name, ports, secrets and
volumes.
"""

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson

from feedsite.embedded.processes import free_port
from tests.e2e.system import wait_until

ROOT = Path(__file__).resolve().parents[2]
SERVICES = (
    "api",
    "fanout",
    "dlq",
    "prometheus",
)  # the others are what these depend on, but for Grafana
UP_SECONDS = 600.0
PATIENCE = 90.0

Container = dict[str, Any]


def why_not() -> str | None:
    """Return why containers cannot be run here, or None if they can."""
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=30)
        except (OSError, subprocess.SubprocessError):
            return f"`{' '.join(command)}` fails: a running Docker Engine with Compose v2 is needed"
    return None


class Stack:
    """A running project; `compose` is the command line of its own."""

    def __init__(self, directory: Path, *more_services: str, **variables: str) -> None:
        self._services = [*SERVICES, *more_services]
        self.name = f"feed-test-{secrets.token_hex(4)}"
        self._ports = {
            name: free_port() for name in ("API_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
        }
        self._env_file = directory / "env"
        subprocess.run([sys.executable, "bin/write-env", self._env_file], check=True, cwd=ROOT)
        self.configure(**self._ports, ENV_FILE=self._env_file, **variables)

    def configure(self, **variables: object) -> None:
        """Set variables for whatever is started from now on."""
        with self._env_file.open("a") as file:
            file.writelines(f"{name}={value}\n" for name, value in variables.items())

    def compose(self, *arguments: str, stdin: str | None = None) -> str:
        """Run `docker compose` on this project and return its output; fails with what it said."""
        command = [
            "docker",
            "compose",
            "-p",
            self.name,
            "--env-file",
            str(self._env_file),
            *arguments,
        ]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=_environment(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=UP_SECONDS,
        )
        assert done.returncode == 0, (
            f"{' '.join(arguments)}: {done.stdout[-2_000:]}{done.stderr[-4_000:]}"
        )
        return done.stdout

    def up(self, *options: str) -> None:
        self.compose("up", "--detach", "--wait", "--wait-timeout", "300", *options, *self._services)

    def secrets(self) -> list[str]:
        """Return the random values of the environment file."""
        values = [line.partition("=")[2] for line in self._env_file.read_text().splitlines()]
        return [value for value in values if len(value) == 64]

    def sql(self, query: str) -> str:
        """Return what PostgreSQL answers its administrator, columns divided by bars."""
        shell = ["psql", "-U", "postgres", "-d", "feed", "-At", "-c", query]
        return self.compose("exec", "-T", "postgres", *shell).strip()

    def manage(self, *arguments: str) -> str:
        return self.compose("exec", "-T", "api", "python", "manage.py", *arguments)

    def containers(self, *services: str) -> list[Container]:
        """Return what `docker inspect` says of the running containers of `services`, or of all."""
        ids = self.compose("ps", "--quiet", *services).split()
        inspected = subprocess.run(["docker", "inspect", *ids], check=True, capture_output=True)
        found: list[Container] = orjson.loads(inspected.stdout)
        return found

    def configuration(self, service: str) -> dict[str, Any]:
        """Return a service as Compose understands it, running or not."""
        services: dict[str, dict[str, Any]] = orjson.loads(
            self.compose("config", "--format", "json")
        )["services"]
        return services[service]

    def wait_until_healthy(self, *services: str) -> None:
        eventually(
            lambda: all(health(container) == "healthy" for container in self.containers(*services))
        )

    def client(self, user: int) -> httpx.Client:
        token = self.manage("issue_token", str(user)).strip()
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self._ports['API_PORT']}", headers=headers, timeout=30
        )

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return what Prometheus answers to an instant query."""
        url = f"http://127.0.0.1:{self._ports['PROMETHEUS_PORT']}/api/v1/query"
        answer = httpx.get(url, params={"query": expression}, timeout=30).raise_for_status().json()
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


@contextmanager
def running(directory: Path, *more_services: str, **variables: str) -> Iterator[Stack]:
    """Build, start, yield and remove a stack with all it wrote; on the way out of a failure print
    its logs.
    """
    stack = Stack(directory, *more_services, **variables)
    try:
        stack.up("--build")
        yield stack
    except BaseException:
        print(stack.compose("ps", "--all"), stack.compose("logs", "--tail", "40"))  # noqa: T201 - for pytest to show
        raise
    finally:
        stack.compose("down", "--volumes", "--remove-orphans", "--timeout", "10")


def health(container: Container) -> str:
    return str(container["State"].get("Health", {}).get("Status", container["State"]["Status"]))


def service(container: Container) -> str:
    return str(container["Config"]["Labels"]["com.docker.compose.service"])


def eventually(condition: Callable[[], object]) -> None:
    wait_until(condition, PATIENCE)


def post(client: httpx.Client, contents: Sequence[str]) -> list[int]:
    """Publish posts one by one and return their ids."""
    accepted = [client.post("/posts", json={"content": content}) for content in contents]
    assert [answer.status_code for answer in accepted] == [202] * len(contents)
    return [int(answer.json()["id"]) for answer in accepted]


def _environment() -> dict[str, str]:
    """Return the environment without the variables of the tests' own servers, which would win over
    the file.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FEED_", "KAFKA_", "DATABASE_"))
    }
