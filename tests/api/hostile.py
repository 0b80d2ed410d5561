"""The JSON test suite and the naughty strings that lie beside the repository."""

import json
import tarfile
from collections.abc import Iterator

from tests.e2e.real_data import DATA


def json_suite() -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each file of the suite."""
    with tarfile.open(DATA / "json_test_suite.tar.gz") as suite:
        for member in suite:
            name = member.name.rpartition("/")[2]
            file = suite.extractfile(member)
            if file is not None and name[:2] in ("y_", "n_", "i_"):
                yield name, file.read()


def naughty_strings() -> list[str]:
    strings: list[str] = json.loads((DATA / "blns.json").read_text())
    return strings
