"""The HTTP requests that the benchmarks send."""

import json
from collections.abc import Iterable

from benchmarks.workload import TEXT
from feedsite.authentication import issue_token

TOKEN_SECONDS = 3_600


def posts(authors: Iterable[int]) -> list[str]:
    """Return a new post of each author."""
    body = json.dumps({"content": TEXT})
    return [
        _request(
            "POST /posts",
            author,
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n",
        )
        + body
        for author in authors
    ]


def feeds(users: Iterable[int]) -> list[str]:
    """Return a read of each user's own feed."""
    return [_request(f"GET /feeds/{user}", user, "") for user in users]


def pages(users: Iterable[int]) -> list[str]:
    """Return a read of a page of each user's own feed that is in no cache."""
    return [_request(f"GET /feeds/{user}?limit=19", user, "") for user in users]


def streams(users: Iterable[int]) -> list[str]:
    """Return the opening of a live stream of each user's own feed."""
    return [_request(f"GET /feeds/{user}/live", user, "") for user in users]


def _request(line: str, user: int, headers: str) -> str:
    token = issue_token(user, "", TOKEN_SECONDS)
    return f"{line} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n{headers}\r\n"
