"""One stack for all tests of the default configuration; skipped with the reason where there is no
Docker.
"""

from collections.abc import Iterator

import pytest

from tests.containers import stack


@pytest.fixture(scope="session", autouse=True)
def docker() -> None:
    if reason := stack.why_not():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def feed(docker: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Stack]:
    with stack.running(tmp_path_factory.mktemp("stack")) as running:
        yield running
