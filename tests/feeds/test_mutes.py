"""Mutes: a feed without somebody's posts, on every way to read it, and all of them back afterwards."""

from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import call_command
from django.db import transaction
from pytest_django import Settings

from eventbus.database.sql import execute, fetch
from feeds import housekeeping, imports, live, mutes, verification
from feeds.live import Wanted
from feeds.models import Feed, FeedEntry, Follow, Mute
from feeds.read import here
from feeds.rebuild import rebuild
from posts.pagination import START, Position
from tests.eventbus.events import counted
from tests.factories import (
    PostCreatedFactory,
    PostDeletedFactory,
    UserFollowedFactory,
    UserMutedFactory,
    UserUnfollowedFactory,
    UserUnmutedFactory,
    follow_all,
)
from tests.feeds.model import feed, open_feed
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True)

READER, AUTHOR, STAR, OTHER = 2, 1, 3, 4


@pytest.fixture
def worker(settings: Settings) -> Worker:
    """The reader follows an author whose posts are pushed and a star, whose posts are pulled."""
    settings.FEED_STRATEGY, settings.FEED_PUSH_MAX_FOLLOWERS = "hybrid", 3
    follow_all([READER, OTHER], followee=AUTHOR)
    follow_all([READER, OTHER, 11], followee=STAR)
    return Worker()


def post(worker: Worker, author: int = AUTHOR, count: int = 1) -> list[int]:
    """Have the author post; return the ids, newest first."""
    facts = [PostCreatedFactory(author_id=author) for _ in range(count)]
    worker.process(*facts)
    return [fact.post_id for fact in reversed(facts)]


def rows(user: int = READER) -> int:
    return FeedEntry.objects.filter(user_id=user).count()


@pytest.mark.parametrize("author", [AUTHOR, STAR])
def test_a_mute_takes_the_posts_out_and_lifting_it_brings_all_back(
    worker: Worker, author: int
) -> None:
    before = post(worker, author, 3)
    worker.process(UserMutedFactory(user_id=READER, muted_id=author))
    meanwhile = post(worker, author, 2)
    assert (feed(READER), rows()) == ([], 0)
    assert feed(OTHER) == meanwhile + before, "nobody else's feed changes"
    assert Follow.objects.following_page(READER, START, 5) == [STAR, AUTHOR]
    assert verification.verify().equal

    worker.process(UserUnmutedFactory(user_id=READER, muted_id=author))
    assert feed(READER) == meanwhile + before
    assert verification.verify().equal


def test_the_fan_out_writes_no_row_for_who_has_muted_the_author(worker: Worker) -> None:
    worker.process(UserMutedFactory(user_id=READER, muted_id=AUTHOR))
    before = counted("fanout_rows_total")
    post(worker)
    assert counted("fanout_rows_total") == before + 2  # the author's and the other follower's


def test_a_mute_from_before_the_follow_holds(worker: Worker) -> None:
    posts = post(worker, author=9)
    worker.process(UserMutedFactory(user_id=READER, muted_id=9))
    worker.process(UserFollowedFactory(follower_id=READER, followee_id=9))
    assert feed(READER) == []
    worker.process(UserUnfollowedFactory(follower_id=READER, followee_id=9))
    worker.process(UserUnmutedFactory(user_id=READER, muted_id=9))
    assert feed(READER) == [], "no longer muted, and not followed"
    worker.process(UserFollowedFactory(follower_id=READER, followee_id=9))
    assert feed(READER) == posts


def test_the_latest_of_both_wins_in_whatever_order_they_come(worker: Worker) -> None:
    posts = post(worker)
    muted, unmuted = UserMutedFactory(), UserUnmutedFactory()
    worker.process(unmuted)
    worker.process(muted)
    assert feed(READER) == posts
    worker.process(UserMutedFactory(), muted, unmuted)
    assert feed(READER) == []
    assert not worker.dead_letters


def test_cached_pages_and_counts_of_new_posts_follow_at_once(worker: Worker) -> None:
    [pushed], [pulled] = post(worker), post(worker, STAR)
    assert open_feed(READER)[0] == [pulled, pushed]
    assert open_feed(READER)[1] == "hit"
    worker.process(UserMutedFactory(user_id=READER, muted_id=STAR))
    assert open_feed(READER) == ([pushed], "miss")
    post(worker, STAR)
    assert open_feed(READER) == ([pushed], "hit"), "the star's posts void no page any more"
    worker.process(UserUnmutedFactory(user_id=READER, muted_id=STAR))
    assert open_feed(READER)[1] == "miss"
    newest = post(worker, STAR)[0]
    assert open_feed(READER)[0][0] == newest


def test_posts_past_the_floor_are_without_the_muted_too(worker: Worker, settings: Settings) -> None:
    settings.FEED_MAX_ENTRIES = 2
    old = post(worker, AUTHOR, 5)
    others = post(worker, 9, 3)
    worker.process(UserFollowedFactory(follower_id=READER, followee_id=9))
    worker.process(UserMutedFactory(user_id=READER, muted_id=AUTHOR))
    assert Feed.objects.get(user_id=READER).floor > 0
    assert feed(READER) == others
    worker.process(UserUnmutedFactory(user_id=READER, muted_id=AUTHOR))
    assert feed(READER) == others + old
    assert verification.verify().equal


def test_a_feed_at_rest_and_its_rebuild_know_the_mute(worker: Worker) -> None:
    post(worker, AUTHOR, 2)
    own = post(worker, READER)
    with transaction.atomic():
        Feed.objects.filter(user_id=READER).update(last_read_at="2025-01-01T00:00:00Z")
        housekeeping.put_to_rest([READER])
    worker.process(UserMutedFactory(user_id=READER, muted_id=AUTHOR))
    assert feed(READER) == own
    rebuild([READER])
    assert (feed(READER), rows()) == (own, 1)
    assert verification.verify().equal


def test_deleted_while_muted_it_stays_away(worker: Worker) -> None:
    gone, kept = post(worker, AUTHOR, 2)
    worker.process(UserMutedFactory())
    worker.process(PostDeletedFactory(author_id=AUTHOR, post_id=gone))
    worker.process(UserUnmutedFactory())
    assert feed(READER) == [kept]


def test_an_import_respects_mutes(worker: Worker) -> None:
    [mine] = post(worker, 9)
    worker.process(UserMutedFactory(user_id=READER, muted_id=9))
    worker.process(
        UserMutedFactory(user_id=8, muted_id=9), UserUnmutedFactory(user_id=8, muted_id=9)
    )
    imports.import_follows([(READER, 9), (8, 9)])
    here.pages.wait_until_noticed()
    assert (feed(READER), feed(8)) == ([], [mine])
    assert verification.verify().equal
    worker.process(UserUnmutedFactory(user_id=READER, muted_id=9))
    assert feed(READER) == [mine]


def test_live_counts_pass_over_the_muted(worker: Worker) -> None:
    worker.process(UserMutedFactory(user_id=READER, muted_id=STAR))
    worker.process(UserMutedFactory(user_id=OTHER, muted_id=AUTHOR))
    post(worker, STAR, 2)
    post(worker, AUTHOR, 3)
    found = live.find([Wanted(READER, 0), Wanted(OTHER, 0)])
    assert [len(its.post_ids) for its in found.values()] == [3, 2]


def test_the_list_of_the_muted_is_paged(worker: Worker) -> None:
    worker.process(*[UserMutedFactory(user_id=READER, muted_id=other) for other in range(10, 16)])
    worker.process(UserUnmutedFactory(user_id=READER, muted_id=12))
    assert mutes.muted_page(READER, START, 3) == [15, 14, 13]
    assert mutes.muted_page(READER, Position(12, newer=False), 3) == [11, 10]
    assert mutes.muted_page(READER, Position(12, newer=True), 2) == [13, 14]
    assert mutes.muted_page(AUTHOR, START, 3) == []


def _forget_on_the_follow() -> None:
    Follow.objects.filter(follower_id=READER, followee_id=AUTHOR).update(muted=False)


def _invent_on_the_follow() -> None:
    Follow.objects.filter(follower_id=READER, followee_id=STAR).update(muted=True)


def _lose_the_mute() -> None:
    Mute.objects.all().delete()


@pytest.mark.parametrize("damage", [_forget_on_the_follow, _invent_on_the_follow, _lose_the_mute])
def test_a_follow_that_contradicts_the_mutes_is_found_and_repaired(
    worker: Worker, damage: Callable[[], Any]
) -> None:
    post(worker, AUTHOR, 2)
    post(worker, STAR, 2)
    worker.process(UserMutedFactory(user_id=READER, muted_id=AUTHOR))
    assert verification.verify().equal
    damage()
    assert verification.verify().wrong_states == 1
    assert verification.verify([OTHER]).equal
    verification.repair()
    assert verification.verify().equal
    assert Follow.objects.get(follower_id=READER, followee_id=STAR).muted is False
    is_muted = Mute.objects.filter(active=True).exists()
    assert Follow.objects.get(follower_id=READER, followee_id=AUTHOR).muted is is_muted


def test_the_index_of_the_fan_out_is_replaced_also_after_an_interruption(worker: Worker) -> None:
    call_command("migrate", "feeds", "0007", verbosity=0)
    execute("CREATE INDEX follows_to_deliver_next ON follows (follower_id)")  # left behind
    call_command("migrate", "feeds", verbosity=0)
    indexes = (
        "SELECT indexname, indexdef FROM pg_indexes WHERE indexname LIKE 'follows_to_deliver%%'"
    )
    [(name, definition)] = fetch(indexes, [])
    assert name == "follows_to_deliver"
    assert "(followee_id, follower_id) WHERE (active AND (NOT idle) AND (NOT muted))" in definition
