"""Clients made from the OpenAPI document by well-known generators post, follow, read page by page,
and show an error's code. They are made anew for each run and are not shipped.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from feedsite.authentication import issue_token
from tests.api import contract
from tests.api.server import ApiServer
from tests.factories import PostCreatedFactory, apply, follow_all

pytestmark = pytest.mark.django_db(transaction=True)

TYPESCRIPT = Path(__file__).parent / "typescript"
READER, AUTHOR = 1, 7
PATIENCE = 120  # seconds
# JSON lines are read as text.
CONFIG = """
post_hooks: []
content_type_overrides:
  application/x-ndjson: text/plain
"""


@pytest.fixture
def api(servers: dict[str, ApiServer]) -> ApiServer:
    return servers["front on"]


@pytest.fixture
def feed() -> list[str]:
    """Return the ids of the reader's feed, from the newest."""
    posts = [PostCreatedFactory(author_id=AUTHOR) for _ in range(5)]
    apply(*posts)
    follow_all([READER], followee=AUTHOR)
    return [str(post.post_id) for post in reversed(posts)]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("document") / "schema.json"
    file.write_text(json.dumps(contract.document()))
    return file


def run(directory: Path, *command: str, **variables: str) -> str:
    """Run a command to its end, and return what it printed."""
    done = subprocess.run(
        command,
        cwd=directory,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Python -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, document: Path) -> Iterator[Path]:
    """Make the package `made_client`."""
    directory = tmp_path_factory.mktemp("python")
    (directory / "config.yml").write_text(CONFIG)
    generator = Path(sys.executable).with_name("openapi-python-client")
    command = [str(generator), "generate", "--meta", "none", "--fail-on-warning"]
    options = ["--path", str(document), "--config", "config.yml", "--output-path", "made_client"]
    run(directory, *command, *options)
    sys.path.insert(0, str(directory))
    yield directory
    sys.path.remove(str(directory))


def operation(tag: str, name: str) -> Any:
    return import_module(f"made_client.api.{tag}.{name}")


def test_a_python_client(api: ApiServer, feed: list[str], python: Path) -> None:
    package, models = import_module("made_client"), import_module("made_client.models")
    client = package.AuthenticatedClient(api.url, issue_token(READER, "", 60))
    create_post = operation("posts", "create_post")

    posted = create_post.sync(client=client, body=models.NewPost(content="from Python"))
    assert posted.content == "from Python"
    event = operation("events", "read_event").sync(posted.event_id, client=client)
    assert event.state == models.EventState.PENDING
    followed = operation("follows", "follow_user").sync(str(AUTHOR), client=client)
    assert followed.followee_id == str(AUTHOR)

    refused = create_post.sync_detailed(client=client, body=models.NewPost(content=" "))
    assert refused.status_code == 422
    assert refused.parsed.code == models.CreatePostErrorCode.CONTENT_EMPTY
    assert refused.parsed.detail == "content must not be empty."

    read_feed, found, cursor = operation("feeds", "read_feed"), [], package.types.UNSET
    while cursor is not None:
        page = read_feed.sync(str(READER), client=client, limit=2, cursor=cursor)
        found += [post.id for post in page.results]
        cursor = page.next_cursor
    assert found == feed


def test_a_python_client_without_a_token(api: ApiServer, python: Path) -> None:
    client = import_module("made_client").AuthenticatedClient(api.url, "x")
    refused = operation("posts", "read_post").sync("1", client=client)
    assert refused.code.value == "invalid_token"


# TypeScript ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def typescript(tmp_path_factory: pytest.TempPathFactory, document: Path) -> Path:
    """Make the client and compile what uses it, with strict types."""
    if not shutil.which("npm") or not shutil.which("node"):
        pytest.skip("node and npm are not both installed")
    directory = tmp_path_factory.mktemp("typescript")
    shutil.copytree(TYPESCRIPT, directory, dirs_exist_ok=True)
    try:
        run(directory, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    except (AssertionError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm cannot install what makes the client: {str(error)[-200:]}")
    tools = directory / "node_modules/.bin"
    command = [str(tools / "openapi-ts"), "--input", str(document), "--output", "generated"]
    run(directory, *command, "--client", "@hey-api/client-fetch")
    run(directory, str(tools / "tsc"))
    return directory


def test_a_typescript_client(api: ApiServer, feed: list[str], typescript: Path) -> None:
    token = issue_token(READER, "", 60)
    printed = run(typescript, "node", "built/use.js", API=api.url, TOKEN=token)
    assert json.loads(printed) == {
        "content": "from TypeScript",
        "followee": str(AUTHOR),
        "feed": feed,
        "refused": "content_empty",
        "refusedAsKnown": True,
        "missing": "post_not_found",
    }
