"""What a process of the API does before its first request."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from feedsite.warm_up import drop_gauges_of_the_dead


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_what_a_dead_process_said_of_itself_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a breaker that was open in a process that died would be open for ever; what it counted
    stays.
    """
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    dead, alive = dead_process(), os.getpid()
    for name in (f"gauge_livemax_{dead}.db", f"gauge_livesum_{alive}.db", f"counter_{dead}.db"):
        (tmp_path / name).touch()
    drop_gauges_of_the_dead()
    assert {file.name for file in tmp_path.iterdir()} == {
        f"gauge_livesum_{alive}.db",
        f"counter_{dead}.db",
    }
