"""Processes that kill themselves at a named point."""

import signal

from tests.crash.die_at import POINTS
from tests.e2e.system import Process, System, wait_until


def dying(system: System, point: str, *command: str, **variables: str) -> Process:
    """Start a command that will kill itself at `point`."""
    assert point in POINTS
    marker = str(system.directory / "died")
    return system.command(
        "-m", "tests.crash.die_at", point, marker, *command, script="-u", **variables
    )


def wait_for_death(process: Process) -> None:
    wait_until(lambda: not process.running())
    assert process.popen.returncode == -signal.SIGKILL, process.log.read_text()
