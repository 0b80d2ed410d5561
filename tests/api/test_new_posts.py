"""`GET /feeds/{user}/new?since=`: how many posts are newer, asked often and answered from Redis."""

from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from feedsite.authentication import issue_token
from posts.pagination import DEFAULT_LIMIT
from tests.factories import (
    PostDeletedFactory,
    UserFollowedFactory,
    UserUnfollowedFactory,
)
from tests.feeds.hybrid import AUTHOR, READER, STAR, post, worker_of_both_kinds
from tests.feeds.model import feed, open_feed
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def worker(settings: Settings) -> Worker:
    """The reader follows an author whose posts are pushed and a star, whose posts are pulled."""
    return worker_of_both_kinds(settings)


def ask(query: str, user: int = READER, by: int = READER, scope: str = "") -> Any:
    headers = {"Authorization": f"Bearer {issue_token(by, scope, 60)}"}
    return Client(headers=headers).get(f"/feeds/{user}/new{query}")


def new_since(since: int) -> tuple[int, int | None]:
    """Return how many posts are newer than `since`, and which is the newest."""
    answer = ask(f"?since={since}")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    body = answer.json()
    assert set(body) == {"count", "newest_id"}
    assert body["newest_id"] is None or body["newest_id"] == str(int(body["newest_id"]))
    return body["count"], body["newest_id"] and int(body["newest_id"])


def queries_of(since: int) -> int:
    """Return how many queries a poll costs, but for the one a second that asks whether the cache
    counts.
    """
    with CaptureQueriesContext(connection) as captured:
        new_since(since)
    return sum("cache_state" not in query["sql"] for query in captured)


def test_an_empty_feed_has_nothing_new(worker: Worker) -> None:
    assert new_since(0) == (0, None)


def test_the_posts_above_since_are_counted_and_the_newest_is_told(worker: Worker) -> None:
    written = post(worker, 5)
    for newer, since in enumerate(written):
        assert new_since(since) == (newer, written[0])
        assert new_since(since - 1) == (newer + 1, written[0])
    assert new_since(0) == (5, written[0])
    assert new_since(2**63 - 1) == (0, written[0])


def test_a_since_older_than_the_first_page_counts_beyond_it(worker: Worker) -> None:
    written = post(worker, DEFAULT_LIMIT + 15)
    for _ in range(3):  # at first from PostgreSQL, then from Redis
        assert new_since(written[-1]) == (DEFAULT_LIMIT + 14, written[0])
        assert new_since(written[DEFAULT_LIMIT]) == (DEFAULT_LIMIT, written[0])
        assert new_since(written[DEFAULT_LIMIT - 1]) == (DEFAULT_LIMIT - 1, written[0])
        assert new_since(0) == (DEFAULT_LIMIT + 15, written[0])


@pytest.mark.parametrize("posts", [99, 100, 101, 150])
def test_more_than_a_hundred_count_as_a_hundred(worker: Worker, posts: int) -> None:
    written = post(worker, posts)
    for _ in range(3):
        assert new_since(0) == (min(posts, 100), written[0])
        assert new_since(written[-1]) == (min(posts - 1, 100), written[0])


def test_whoever_polls_is_answered_without_a_query(worker: Worker) -> None:
    written = post(worker, DEFAULT_LIMIT + 15)
    assert queries_of(written[0]) > 0
    assert queries_of(written[0]) == 0
    assert queries_of(written[DEFAULT_LIMIT - 1]) == 0
    new_since(0)  # reads further than the page, and keeps what it has found
    assert queries_of(0) == 0
    assert queries_of(written[-1]) == 0
    assert open_feed(READER) == (written[:DEFAULT_LIMIT], "hit")


def test_polling_and_reading_share_one_page(worker: Worker) -> None:
    written = post(worker, 3)
    assert open_feed(READER)[1] == "miss"
    assert queries_of(written[2]) == 0
    assert ask(f"?since={written[2]}").headers["X-Cache"] == "hit"


def test_a_count_that_reached_beyond_the_page_leaves_the_page_as_it_was(worker: Worker) -> None:
    written = post(worker, DEFAULT_LIMIT + 5)
    first = Client(headers={"Authorization": f"Bearer {issue_token(READER, '', 60)}"}).get(
        f"/feeds/{READER}"
    )
    assert [new_since(0) for _ in range(2)] == [(DEFAULT_LIMIT + 5, written[0])] * 2
    again = Client(headers={"Authorization": f"Bearer {issue_token(READER, '', 60)}"}).get(
        f"/feeds/{READER}"
    )
    assert (again.content, again.headers["X-Cache"]) == (first.content, "hit")


@pytest.mark.parametrize("author", [AUTHOR, STAR])
@pytest.mark.parametrize("older", [3, DEFAULT_LIMIT + 5])
def test_every_new_post_is_counted_at_the_next_poll(
    worker: Worker, author: int, older: int
) -> None:
    written = post(worker, older)
    for poll in range(4):
        assert [new_since(since) for since in (written[0], 0)] == [
            (poll, feed(READER)[0]),
            (older + poll, feed(READER)[0]),
        ]
        post(worker, author=author)


@pytest.mark.parametrize("author", [AUTHOR, STAR])
def test_what_leaves_a_feed_is_counted_no_more(worker: Worker, author: int) -> None:
    first, last = post(worker, author=author) + post(worker, author=author)
    assert new_since(0) == (2, last)
    worker.process(PostDeletedFactory(author_id=author, post_id=last))
    assert new_since(0) == (1, first)
    worker.process(UserUnfollowedFactory(follower_id=READER, followee_id=author))
    assert new_since(0) == (0, None)
    worker.process(UserFollowedFactory(follower_id=READER, followee_id=author))
    assert new_since(0) == (1, first)


@pytest.mark.parametrize(
    "query",
    [
        "?since=",
        "?since=x",
        "?since=-1",
        "?since=1.5",
        "?since=9223372036854775808",
        "?since=%C2%B2",
        "?since=1e3",
    ],
)
def test_a_bad_since_is_refused_with_a_code(query: str) -> None:
    answer = ask(query)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_since")


def test_it_is_the_owners_or_needs_the_scope(worker: Worker) -> None:
    assert ask("?since=0", by=9).status_code == 403
    assert ask("?since=0", by=9).json()["code"] == "not_your_feed"
    assert ask("?since=x", by=9).status_code == 403
    assert ask("?since=0", by=9, scope="feeds:read").status_code == 200
    assert Client().get(f"/feeds/{READER}/new?since=0").status_code == 401
    assert ask("?since=0", user=0).status_code == 404
