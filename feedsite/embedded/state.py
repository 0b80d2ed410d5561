"""The state file: where each embedded server listens, its password and its process."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServerRecord:
    """What is known of one server; `pid` is 0 after a stop."""

    url: str
    port: int
    password: str
    pid: int


def read(data_dir: Path) -> dict[str, ServerRecord]:
    """Return the records by environment variable (`DATABASE_URL`, …), `{}` if nothing was ever
    started.
    """
    file = _file(data_dir)
    if not file.exists():
        return {}
    return {
        variable: ServerRecord(**fields)
        for variable, fields in json.loads(file.read_text()).items()
    }


def write(data_dir: Path, records: dict[str, ServerRecord]) -> None:
    """Replace all records."""
    fields = {variable: asdict(record) for variable, record in records.items()}
    write_private(_file(data_dir), json.dumps(fields, indent=2) + "\n")


def write_private(file: Path, text: str) -> None:
    """Replace `file` in one step, readable by its owner alone: for what holds passwords."""
    draft = file.with_name(file.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
    draft.replace(file)


def _file(data_dir: Path) -> Path:
    return data_dir / "servers.json"
