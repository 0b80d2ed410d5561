"""Schemathesis asks the API whatever its OpenAPI document allows, and what it does not: each answer
is a documented one, none is a 5xx, and what is wrong is refused.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from feedsite.authentication import issue_token
from tests.api import contract
from tests.api.server import ApiServer
from tests.factories import PostCreatedFactory, PostDeletedFactory, apply, follow_all

pytestmark = pytest.mark.django_db(transaction=True)

USER = 1
PATIENCE = 120  # seconds
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "ignored_auth",
]
# Of the values for an id, that share names something there is.
KNOWN_IDS = """
[dictionaries]
posts = {{ values = {posts} }}
users = {{ values = ["1", "2", "9223372036854775807"] }}

[parameters]
"path.post_id" = {{ dictionary = "posts", probability = 0.7 }}
"path.user_id" = {{ dictionary = "users", probability = 0.7 }}
"""


def run(api: ApiServer, directory: Path, *options: str) -> tuple[int, str]:
    """Run Schemathesis, the same each time; return its exit status and what it printed."""
    mine, gone = PostCreatedFactory(author_id=USER), PostCreatedFactory(author_id=USER)
    apply(mine, gone, theirs := PostCreatedFactory(author_id=2))
    apply(PostDeletedFactory(author_id=USER, post_id=gone.post_id))
    follow_all([USER], followee=2)
    posts = json.dumps([str(post.post_id) for post in (mine, gone, theirs)])
    (directory / "schemathesis.toml").write_text(KNOWN_IDS.format(posts=posts))
    (directory / "schema.json").write_text(json.dumps(contract.document()))
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        "schema.json",
        f"--url={api.url}",
        f"--header=Authorization: Bearer {issue_token(USER, '', 600)}",
        f"--checks={','.join(CHECKS)}",
        "--phases=coverage,fuzzing",
        "--generation-deterministic",
        "--seed=1",
        "--no-shrink",
        "--continue-on-failure",
        "--suppress-health-check=all",
        "--request-timeout=10",
        "--workers=1",
        "--no-color",
        *options,
    ]
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(("front", "examples"), [("front on", 15), ("front off", 3)])
def test_every_answer_is_a_documented_one(
    servers: dict[str, ApiServer], tmp_path: Path, front: str, examples: int
) -> None:
    # A stream does not end, or is a 501: tests/api/test_live.py.
    options = ("--exclude-operation-id=stream_feed", f"--max-examples={examples}")
    status, told = run(servers[front], tmp_path, *options)
    assert status == 0, told
    for phase in ("Coverage", "Fuzzing"):
        assert f"✅  {phase}" in told, told
