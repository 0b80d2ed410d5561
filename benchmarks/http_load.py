"""Load over HTTP: by `wrk` where it is installed, else by a slower client of our own
(`benchmarks.load`).
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.load import Load, Plan
from benchmarks.stand import ROOT

WRK = shutil.which("wrk")
NAME = (
    "wrk, one thread"
    if WRK
    else "our own client, as wrk is not installed; it needs more CPU, so rates are lower"
)

_SCRIPT = """
local requests = {{ {requests} }}
local n = 0
request = function() n = n % #requests + 1; return requests[n] end
"""
_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


def closed(port: int, requests: Sequence[str], connections: int, seconds: float) -> Load:
    """Return what the server gives when each connection sends its next request as soon as it has an
    answer.
    """
    if WRK is None:
        return own(Plan(port, list(requests), connections, seconds))
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        # For ASCII a JSON string is a Lua string too; Lua's long brackets would drop the carriage
        # returns.
        script.write(_SCRIPT.format(requests=", ".join(map(json.dumps, requests))))
        script.flush()
        return _wrk(port, script.name, connections, seconds)


def own(plan: Plan) -> Load:
    """Carry `plan` out in a process of its own."""
    with start(plan) as process:
        return result(process)


def start(plan: Plan) -> "subprocess.Popen[str]":
    """Begin to carry `plan` out; `result` waits for the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    if process.stdin:
        process.stdin.write(json.dumps(asdict(plan)))
        process.stdin.close()
    return process


def result(process: "subprocess.Popen[str]") -> Load:
    output = process.stdout.read() if process.stdout else ""
    process.wait()
    return Load(**json.loads(output))


def _wrk(port: int, script: str, connections: int, seconds: float) -> Load:
    command = [str(WRK), "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--latency", "-s", script]
    output = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(script).parent,
    ).stdout
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    broken = re.findall(r"(?:connect|read|write|timeout) (\d+)", output)
    return Load(
        rate=float(_find(r"Requests/sec:\s+(\S+)", output)),
        p50_ms=_milliseconds(_find(r"^\s+50%\s+(\S+)", output)),
        p99_ms=_milliseconds(_find(r"^\s+99%\s+(\S+)", output)),
        errors=int(refused[1] if refused else 0) + sum(map(int, broken)),
    )


def _find(pattern: str, output: str) -> str:
    match = re.search(pattern, output, re.MULTILINE)
    if not match:
        raise RuntimeError(f"wrk said: {output}")
    return match[1]


def _milliseconds(text: str) -> float:
    match = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    if not match:
        raise RuntimeError(f"not a time of wrk: {text}")
    return float(match[1]) * _UNITS[match[2]]
