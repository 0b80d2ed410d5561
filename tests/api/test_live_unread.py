"""What the events of a live feed say of unread posts."""

from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from feeds import live as live_feeds
from feeds.live import Wanted
from feeds.models import RESTING, Feed
from feeds.timeline import Reader
from posts.pagination import START
from tests.api.server import ApiServer
from tests.api.test_live import Live
from tests.factories import (
    FeedSeenFactory,
    PostCreatedFactory,
    PostDeletedFactory,
    UserFollowedFactory,
    apply,
)
from tests.feeds.hybrid import AUTHOR, READER, STAR, post, worker_of_both_kinds
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def worker(settings: Settings) -> Worker:
    """The reader follows an author whose posts are pushed and a star, whose posts are pulled."""
    return worker_of_both_kinds(settings)


@pytest.fixture
def front(servers: dict[str, ApiServer]) -> ApiServer:
    return servers["front on"]


def see(worker: Worker, post_id: int) -> None:
    worker.process(FeedSeenFactory(user_id=READER, post_id=post_id))


def next_of(live: Live, name: str) -> dict[str, object]:
    """Return the next event of this name, or fail at another than a `changed` before it."""
    found, data = live.event()
    while found == "changed":
        found, data = live.event()
    assert found == name
    return data


def test_who_never_marked_anything_is_told_of_nothing_unread(
    front: ApiServer, worker: Worker
) -> None:
    live = Live(front, "?since=0")
    [newest] = post(worker)
    assert live.event() == ("new", {"newest_id": str(newest), "count": 1, "unread": None})
    live.close()


@pytest.mark.parametrize("author", [AUTHOR, STAR])
def test_what_is_new_comes_with_what_is_unread(
    front: ApiServer, worker: Worker, author: int
) -> None:
    written = post(worker, 5)
    see(worker, written[3])
    live = Live(front, f"?since={written[1]}")
    first = {"newest_id": str(written[0]), "count": 1, "unread": 3}
    assert live.event() == ("new", first)
    for more in (1, 2):
        [newest] = post(worker, 1, author)
        told = {"newest_id": str(newest), "count": 1 + more, "unread": 3 + more}
        assert live.event() == ("new", told)
    live.close()


def test_a_mark_is_told_to_all_streams_of_the_user(front: ApiServer, worker: Worker) -> None:
    written = post(worker, 4)
    streams = [Live(front, "?since=0"), Live(front, f"?since={written[2]}")]
    assert [live.new()[1] for live in streams] == [4, 2]
    for unread in (2, 0):
        see(worker, written[unread])
        for live in streams:
            told = {"seen": str(written[unread]), "unread": unread}
            assert live.event() == ("seen", told), "and no other: the posts are what they were"
    [newest] = post(worker)
    assert [next_of(live, "new")["unread"] for live in streams] == [1, 1]
    worker.process(PostDeletedFactory(author_id=AUTHOR, post_id=newest))
    assert [next_of(live, "seen")["unread"] for live in streams] == [0, 0]
    for live in streams:
        live.close()


def test_a_late_post_above_the_marker_is_unread_though_not_new(
    front: ApiServer, worker: Worker
) -> None:
    [first] = post(worker)
    late = PostCreatedFactory(author_id=AUTHOR)
    [newest] = post(worker)
    see(worker, first)
    live = Live(front, "?since=0")
    assert next_of(live, "new")["unread"] == 1
    goes_on = Live(front, f"?since={newest}")
    [third] = post(worker)
    assert [next_of(one, "new")["unread"] for one in (live, goes_on)] == [2, 2]
    worker.process(late)
    assert next_of(live, "new")["unread"] == 3
    assert next_of(goes_on, "seen") == {"seen": str(first), "unread": 3}
    assert third > newest
    for one in (live, goes_on):
        one.close()


def test_a_mark_that_is_found_together_with_a_new_post_is_told_too(
    front: ApiServer, worker: Worker
) -> None:
    [first] = post(worker)
    live = Live(front, "?since=0")
    assert next_of(live, "new")["unread"] is None
    # Of neither is anything announced, as while Redis is away; then the feed is counted.
    newest = PostCreatedFactory(author_id=AUTHOR)
    apply(newest, FeedSeenFactory(user_id=READER, post_id=first))
    worker.process(UserFollowedFactory(follower_id=READER, followee_id=12))
    told = {"newest_id": str(newest.post_id), "count": 2, "unread": 1}
    assert next_of(live, "new") == told
    assert next_of(live, "seen") == {"seen": str(first), "unread": 1}
    live.close()


@pytest.mark.parametrize("floor", ["materialised", "raised", "resting"])
@pytest.mark.parametrize("posts", [3, 30, 130])
def test_streams_count_as_the_first_page_does(worker: Worker, posts: int, floor: str) -> None:
    written = post(worker, posts - posts // 2) + post(worker, posts // 2, STAR)
    written.sort(reverse=True)
    if floor != "materialised":
        moved = RESTING if floor == "resting" else written[posts // 2]
        Feed.objects.filter(user_id=READER).update(floor=moved, idle=floor == "resting")
    sinces = [None, 0, written[0], written[-1], written[posts // 2]]
    wanted = [Wanted(READER, since) for since in sinces]
    for seen in (None, written[-1], written[posts // 3], written[0]):
        Feed.objects.filter(user_id=READER).update(seen_post_id=seen)
        newest = [row.id for row in Reader(READER).read(START, 100)]
        unread = [post_id for post_id in newest if seen is not None and post_id > seen]
        for found in live_feeds.find(wanted).values():
            assert (found.seen, list(found.unread_ids)) == (seen, unread)


def test_feeds_of_which_more_is_unread_cost_one_more_question(worker: Worker) -> None:
    written = post(worker, 5)
    see(worker, written[3])
    asked = [Wanted(READER, written[0]), Wanted(READER, written[1]), Wanted(READER, written[4])]
    for wanted, queries in ((asked, 2), (asked[2:], 1)):
        with CaptureQueriesContext(connection) as captured:
            found = live_feeds.find(wanted)
        assert len(captured) == queries
        assert [len(one.unread_ids) for one in found.values()] == [3] * len(wanted)


def test_a_post_that_comes_between_the_two_questions_is_as_new_as_it_is_unread(
    worker: Worker,
) -> None:
    written = post(worker, 5)
    see(worker, written[3])
    wanted = Wanted(READER, written[1])
    questions = 0
    late: list[int] = []

    def post_before_the_second(
        execute: Any, sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        nonlocal questions
        questions += sql == live_feeds._NEWER
        if questions == 2 and not late:
            fact = PostCreatedFactory(author_id=AUTHOR)
            late.append(fact.post_id)
            apply(fact)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(post_before_the_second):
        found = live_feeds.find([wanted])[wanted]
    assert found.unread_ids == [*late, *written[:3]]
    assert found.post_ids == [*late, written[0]]
