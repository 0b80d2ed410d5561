"""What the demo shows once everything runs."""

from collections.abc import Iterable
from typing import Any

from feedsite.demo import admin, sample
from feedsite.demo.client import Client
from feedsite.demo.ports import Places

SHOWN_POSTS = 10


def feed(posts: list[Any]) -> str:
    """Return the newest posts of the reader's feed, a line each."""
    lines = [
        f"{post['created_at'][11:19]}  user {post['author_id']:>3}  {post['content']}"
        for post in posts
    ]
    return _block(
        f"The newest posts in the feed of user {sample.READER}:", lines[:SHOWN_POSTS] or ["(none)"]
    )


def places(ports: Places, password: str | None) -> str:
    """Return the addresses for a browser; without a password it is the one set in the admin."""
    url = "http://127.0.0.1:{}".format
    login = f"password {password}" if password else "with the password you gave it"
    lines = [
        f"API docs   {url(ports.api)}/docs/",
        f"Admin      {url(ports.api)}/admin/   user {admin.NAME}, {login}",
        f"Metrics    {url(ports.api)}/metrics (API)",
        f"           {url(ports.run_fanout)}/metrics (run_fanout)",
        f"           {url(ports.run_dlq)}/metrics (run_dlq)",
    ]
    return _block("Open in a browser:", lines)


def requests(client: Client) -> str:
    """Return a request that posts and one that reads, ready for a shell."""
    author = sample.follows()[sample.READER][0]
    feed = f"{client.base_url}/feeds/{sample.READER}"
    as_reader = f"-H 'Authorization: Bearer {client.token(sample.READER)}'"
    lines = [
        f"curl {client.base_url}/posts -H 'Authorization: Bearer {client.token(author)}' "
        """-H 'Content-Type: application/json' -d '{"content": "Hello from the command line"}'""",
        "",
        f"curl {feed} {as_reader}",
        "",
        f"curl -N {feed}/live {as_reader}",
    ]
    title = (
        f"Post as user {author}, whom user {sample.READER} follows, then read the feed of user "
        f"{sample.READER}, or hear of new posts as they come:"
    )
    return _block(title, lines) + "\nCtrl-C stops everything.\n\n"


def _block(title: str, lines: Iterable[str]) -> str:
    return "\n".join(["", title, "", *(f"  {line}".rstrip() for line in lines), ""])
