"""`make env` as an operator meets it: secrets once, and the ones that a later version asks for."""

import re
import stat
import subprocess
from pathlib import Path

import pytest

SECRET = re.compile(r"^(\w+)=([0-9a-f]{64})$", re.MULTILINE)
WANTED = {
    "DJANGO_SECRET_KEY",
    "JWT_SIGNING_KEY",
    "POSTGRES_PASSWORD",
    "POSTGRES_ADMIN_PASSWORD",
    "REDIS_PASSWORD",
    "GRAFANA_PASSWORD",
    "POSTGRES_B_PASSWORD",
    "POSTGRES_B_ADMIN_PASSWORD",
    "REDIS_B_PASSWORD",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "env"


def make_env(file: Path) -> dict[str, str]:
    """Run it and return the secrets that are in the file now."""
    subprocess.run(["make", "--silent", "env", f"ENV_FILE={file}"], check=True)
    return dict(SECRET.findall(file.read_text()))


def test_each_secret_is_random_and_only_the_owner_can_read_them(file: Path, tmp_path: Path) -> None:
    secrets = make_env(file)
    assert secrets.keys() == WANTED
    assert len({*secrets.values(), *make_env(tmp_path / "other").values()}) == 2 * len(WANTED)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_second_run_changes_nothing(file: Path) -> None:
    make_env(file)
    before = file.read_text()
    make_env(file)
    assert file.read_text() == before


def test_an_older_file_keeps_what_it_has_and_gets_what_it_lacks(file: Path) -> None:
    file.write_text("POSTGRES_PASSWORD=mine\nAPI_PORT=9000")
    assert make_env(file).keys() == WANTED - {"POSTGRES_PASSWORD"}
    assert file.read_text().startswith("POSTGRES_PASSWORD=mine\nAPI_PORT=9000\n")
