"""The processes of the demo: started, watched, started again and stopped, their output in one
log.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from django.core.management.base import CommandError

from feedsite.demo.log import Log
from feedsite.embedded.processes import command_line
from feedsite.embedded.state import write_private

STOP_SECONDS = 40.0  # a worker may take 30 s to leave
MAX_DEATHS = 5
DEATHS_SECONDS = 60.0
NOTHING: Mapping[int, str] = {}


@dataclass
class Child:
    """One process and how to start it again; `mark` is the word of its command line by which it is
    recognised.

    With an exit status of `stays_down`, which says why, it is not started again.
    """

    name: str
    mark: str
    command: Sequence[str]
    environment: Mapping[str, str]
    process: subprocess.Popen[str]
    stays_down: Mapping[int, str]
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_DEATHS))
    is_down: bool = False


class Children:
    """Child processes, each the leader of a session of its own: Ctrl-C reaches the demo alone,
    which stops them.
    """

    def __init__(self, log: Log, record: Path) -> None:
        self._log = log
        self._record = record
        self._children: dict[str, Child] = {}
        self._end_orphans()

    def start(
        self,
        name: str,
        mark: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        stays_down: Mapping[int, str] = NOTHING,
    ) -> None:
        """Start a process whose output goes to the log after `name`."""
        process = self._spawn(name, command, environment)
        self._children[name] = Child(name, mark, command, environment, process, stays_down)
        self._write_record()

    def revive(self) -> None:
        """Start what has died again, and say so.

        Raises `CommandError` when it dies again and again.
        """
        for child in self._children.values():
            status = child.process.poll()
            if status is None or child.is_down:
                continue
            _kill_group(child.process.pid)
            if status in child.stays_down:
                child.is_down = True
                why = child.stays_down[status]
                self._log.say(f"{child.name} stays down ({_reason(status)}): {why}.")
                continue
            self._log.say(f"{child.name} died unexpectedly ({_reason(status)}).")
            child.deaths.append(time.monotonic())
            if (
                len(child.deaths) == MAX_DEATHS
                and child.deaths[-1] - child.deaths[0] < DEATHS_SECONDS
            ):
                raise CommandError(
                    f"{child.name} has died {MAX_DEATHS} times within a minute; its last lines say why."
                )
            child.process = self._spawn(child.name, child.command, child.environment)
            self._write_record()
            self._log.say(f"{child.name} started again, pid {child.process.pid}.")

    def runs(self, name: str) -> bool:
        return name in self._children and self._children[name].process.poll() is None

    def stop(self, name: str, is_impatient: Callable[[], bool]) -> None:
        """Ask a process to leave and wait; kill it when it takes too long or `is_impatient` says
        so.
        """
        child = self._children.pop(name, None)
        if child is None or child.is_down:
            return
        child.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        while child.process.poll() is None and time.monotonic() < deadline and not is_impatient():
            time.sleep(0.02)
        _kill_group(child.process.pid)
        status = child.process.wait()
        self._write_record()
        self._log.say(f"{name} stopped" + (f" ({_reason(status)})." if status else "."))

    def _spawn(
        self, name: str, command: Sequence[str], environment: Mapping[str, str]
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(  # noqa: S603 - the command lines are the demo's own
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        threading.Thread(target=self._copy_output, args=(name, process), daemon=True).start()
        return process

    def _copy_output(self, name: str, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            self._log.line(name, line.rstrip())

    # Nothing can stop the children of a demo that was killed, so the next one does.

    def _write_record(self) -> None:
        pids = {child.mark: child.process.pid for child in self._children.values()}
        write_private(self._record, json.dumps(pids))

    def _end_orphans(self) -> None:
        if not self._record.exists():
            return
        for mark, pid in json.loads(self._record.read_text()).items():
            if mark in command_line(pid):
                self._log.say(f"Ending {mark}, left over from a demo that was killed, pid {pid}.")
                os.kill(pid, signal.SIGTERM)
                _wait_for_end(pid, mark)


def _wait_for_end(pid: int, mark: str) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    while mark in command_line(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    _kill_group(pid)


def _kill_group(leader: int) -> None:
    """Kill what is left of a child's process group: workers of a dead API would go on holding its
    port.
    """
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _reason(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
