"""Feeds at rest: free for the fan-out, right for whoever comes back, and materialised again by
then.
"""

import json
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.db.models.functions import Now
from django.test import Client
from pytest_django import Settings

from eventbus.database import locks
from feeds import fanout, handlers, housekeeping, rebuild, verification
from feeds.models import RESTING, Feed, FeedEntry, Follow
from feeds.read import here
from feeds.timeline import Reader
from feedsite.authentication import issue_token
from posts.pagination import START
from tests.eventbus.events import counted, eventually
from tests.factories import (
    PostCreatedFactory,
    PostDeletedFactory,
    UserFollowedFactory,
    UserUnfollowedFactory,
    follow_all,
)
from tests.feeds.elsewhere import elsewhere, somebody_waits
from tests.feeds.model import feed, open_feed
from tests.feeds.test_processing import put_to_rest
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True)

AUTHOR, READER, OTHER = 1, 2, 3
LONG_AGO = "2025-01-01T00:00:00Z"


@pytest.fixture
def worker() -> Worker:
    """Two followers of an author of three posts; one of them, the reader, stayed away for long."""
    worker = Worker()
    follow_all([READER, OTHER], followee=AUTHOR)
    worker.process(*[PostCreatedFactory(author_id=AUTHOR) for _ in range(3)])
    put_to_rest(READER)
    return worker


def state(user: int = READER) -> tuple[bool, bool, bool]:
    """Return whether the feed is left out by the fan-out, has nothing materialised, and is to be
    rebuilt.
    """
    found = Feed.objects.get(user_id=user)
    return found.idle, found.floor == RESTING, found.rebuild_wanted


AWAKE, RESTS, WANTED = (False, False, False), (True, True, False), (True, True, True)


def rows(user: int = READER) -> int:
    """Return how many rows of the feed somebody may read."""
    return FeedEntry.objects.filter(
        user_id=user, post_id__gt=Feed.objects.get(user_id=user).floor
    ).count()


# What rest saves ----------------------------------------------------------------------------------


def test_a_feed_at_rest_costs_the_fan_out_nothing(worker: Worker) -> None:
    assert (state(), rows()) == (RESTS, 0)
    before = counted("fanout_rows_total")
    worker.process(post := PostCreatedFactory(author_id=AUTHOR))
    assert counted("fanout_rows_total") - before == 2  # the author and the other follower
    assert rows() == 0
    worker.process(PostDeletedFactory(author_id=AUTHOR, post_id=post.post_id))
    assert verification.verify().equal


def test_the_fan_out_does_not_even_look_at_followers_who_rest(settings: Settings) -> None:
    settings.FEED_IDLE_DAYS = 30
    follow_all(range(10, 2_010), followee=AUTHOR)
    Feed.objects.filter(user_id__gte=20).update(last_read_at=LONG_AGO)
    with transaction.atomic():
        housekeeping.put_to_rest(range(10, 2_010))
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE follows, feeds")
        explain = "EXPLAIN (ANALYZE, FORMAT JSON) " + fanout._DELIVER
        with transaction.atomic():
            cursor.execute(explain, {"posts": "{77}", "authors": f"{{{AUTHOR}}}"})
            answer = cursor.fetchone()[0]
            transaction.set_rollback(True)
    plan = (json.loads(answer) if isinstance(answer, str) else answer)[0]["Plan"]
    [scan] = [node for node in nodes(plan) if node.get("Relation Name") == "follows"]
    assert scan["Index Name"] == "follows_to_deliver"
    assert (scan["Actual Rows"], scan.get("Rows Removed by Filter", 0)) == (10, 0)


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in nodes(child))]


def test_following_and_unfollowing_at_rest_materialises_nothing(worker: Worker) -> None:
    worker.process(*[mine := PostCreatedFactory(author_id=OTHER)])
    worker.process(UserFollowedFactory(follower_id=READER, followee_id=OTHER))
    assert Follow.objects.get(follower_id=READER, followee_id=OTHER).idle
    assert rows() == 0
    assert feed(READER)[0] == mine.post_id
    worker.process(UserUnfollowedFactory(follower_id=READER, followee_id=OTHER))
    assert mine.post_id not in feed(READER)
    assert verification.verify().equal


def test_an_import_for_a_reader_at_rest_leaves_the_feed_at_rest(
    worker: Worker, tmp_path: Any
) -> None:
    worker.process(post := PostCreatedFactory(author_id=OTHER))
    file = tmp_path / "follows.csv"
    file.write_text(f"follower,followee\n{READER},{OTHER}\n")
    call_command("import_follows", str(file), stdout=StringIO())
    assert state() == RESTS
    assert feed(READER)[0] == post.post_id
    assert verification.verify().equal


# Coming back --------------------------------------------------------------------------------------


def test_whoever_comes_back_gets_the_whole_feed_at_once_and_then_the_fast_one(
    worker: Worker,
) -> None:
    worker.process(missed := PostCreatedFactory(author_id=AUTHOR))
    expected = feed(AUTHOR)
    assert expected[0] == missed.post_id
    assert open_feed(READER)[0] == expected
    assert (state(), rows()) == (WANTED, 0)

    assert housekeeping.rebuild_wanted() == 1
    assert (state(), rows()) == (AWAKE, 4)
    assert not Follow.objects.filter(idle=True).exists()
    assert open_feed(READER)[0] == expected
    worker.process(later := PostCreatedFactory(author_id=AUTHOR))
    assert rows() == 5
    assert open_feed(READER)[0] == [later.post_id, *expected]
    assert housekeeping.rebuild_wanted() == 0
    assert verification.verify().equal


def test_a_page_of_a_feed_at_rest_is_never_kept_for_nobody_would_void_it(worker: Worker) -> None:
    assert [open_feed(READER)[1] for _ in range(3)] == ["miss"] * 3
    housekeeping.rebuild_wanted()
    assert [open_feed(READER)[1] for _ in range(3)] == ["miss", "hit", "hit"]
    worker.process(later := PostCreatedFactory(author_id=AUTHOR))
    assert open_feed(READER) == (feed(AUTHOR), "miss")
    assert feed(AUTHOR)[0] == later.post_id


@pytest.mark.parametrize("path", ["?limit=2", "/new?since=0"])
def test_any_read_brings_the_feed_back(worker: Worker, path: str) -> None:
    headers = {"Authorization": f"Bearer {issue_token(READER, '', 60)}"}
    assert Client(headers=headers).get(f"/feeds/{READER}{path}").status_code == 200
    assert state() == WANTED


def test_a_page_read_at_rest_is_not_kept_though_the_feed_was_rebuilt_meanwhile(
    worker: Worker,
) -> None:
    lookup = here.pages.look_up(READER)
    reader = Reader(READER)
    reader.read(START, 20)
    worker.process(PostCreatedFactory(author_id=AUTHOR))  # voids nothing of this reader
    rebuild._include(READER)
    rebuild._fill(READER)
    reader.note()
    assert lookup.replaces
    assert not reader.cacheable


def test_a_page_is_not_kept_when_the_feed_was_put_to_rest_while_it_was_read(worker: Worker) -> None:
    Feed.objects.filter(user_id=OTHER).update(last_read_at=LONG_AGO)
    reader = Reader(OTHER)
    reader.read(START, 20)
    put_to_rest(OTHER)
    reader.note()
    assert not reader.cacheable


def test_a_read_is_noted_at_most_once_an_hour(worker: Worker) -> None:
    def is_noted(minutes_later: int) -> bool:
        before = Now() - timedelta(minutes=minutes_later)
        Feed.objects.filter(user_id=OTHER).update(last_read_at=before)
        last_read_at = Feed.objects.get(user_id=OTHER).last_read_at
        open_feed(OTHER, "?limit=5")
        return Feed.objects.get(user_id=OTHER).last_read_at != last_read_at

    assert (is_noted(10), is_noted(59), is_noted(61)) == (False, False, True)


# Readers wait for nobody --------------------------------------------------------------------------


@pytest.fixture
def read_only() -> Any:
    """Have this connection write nothing, as if PostgreSQL were a standby."""
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
    yield
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = off")


def test_on_a_database_that_only_reads_the_feed_is_shown_all_the_same(
    worker: Worker, read_only: None
) -> None:
    assert open_feed(READER)[0] == feed(AUTHOR)
    assert state() == RESTS


def test_a_page_whose_reading_could_not_be_noted_is_not_kept(
    worker: Worker, read_only: None
) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = off")
        Feed.objects.filter(user_id=OTHER).update(last_read_at=LONG_AGO)
        cursor.execute("SET default_transaction_read_only = on")
    reader = Reader(OTHER)
    assert [row.id for row in reader.read(START, 20)] == feed(AUTHOR)
    reader.note()
    assert not reader.cacheable  # for the next step of the walk may put the feed to rest


def test_a_reader_does_not_wait_for_an_import_or_a_walk_that_holds_the_feed(worker: Worker) -> None:
    def read() -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = 0")
        reader = Reader(READER)
        reader.read(START, 20)
        reader.note()
        return reader.cacheable

    with elsewhere() as run, transaction.atomic():
        Feed.objects.select_for_update().get(user_id=READER)
        assert run(read).result(timeout=20) is False
    assert state() == RESTS


# Rebuilding ---------------------------------------------------------------------------------------


def rebuild_feeds(*options: str) -> str:
    out = StringIO()
    call_command("rebuild_feeds", *options, stdout=out)
    return out.getvalue().strip()


def test_feeds_are_rebuilt_by_hand_one_by_one_or_all_that_do_not_rest(worker: Worker) -> None:
    FeedEntry.objects.filter(user_id=OTHER).delete()
    assert rebuild_feeds("--all") == "2 feeds rebuilt"
    assert (rows(OTHER), state()) == (3, RESTS)
    assert rebuild_feeds("--user", str(READER), str(OTHER)) == "2 feeds rebuilt"
    assert (rows(), state()) == (3, AWAKE)
    assert verification.verify().equal


def test_a_user_without_a_feed_is_named_and_the_others_are_rebuilt(worker: Worker) -> None:
    with pytest.raises(CommandError, match=r"There is no feed of 404, 405; 1 feed rebuilt\."):
        rebuild_feeds("--user", "405", str(READER), "404")
    assert state() == AWAKE


@pytest.mark.parametrize("options", [[], ["--user"], ["--user", "x"], ["--all", "--user", "2"]])
def test_without_saying_clearly_whose_feeds_nothing_is_rebuilt(options: list[str]) -> None:
    with pytest.raises(CommandError):
        rebuild_feeds(*options)


def test_what_was_rebuilt_by_hand_is_not_put_to_rest_by_the_next_step_of_the_walk(
    worker: Worker,
) -> None:
    rebuild_feeds("--user", str(READER))
    with transaction.atomic():
        housekeeping.put_to_rest([READER])
    assert state() == AWAKE


def test_a_rebuild_that_died_half_way_leaves_a_right_feed_and_the_next_read_has_it_finished(
    worker: Worker,
) -> None:
    rebuild._include(READER)  # … and here the process is killed
    assert state() == (False, True, False)
    worker.process(PostCreatedFactory(author_id=AUTHOR))
    with transaction.atomic():
        housekeeping.put_to_rest([READER])
    assert feed(READER) == feed(AUTHOR)
    assert verification.verify().equal

    assert open_feed(READER) == (feed(AUTHOR), "miss")
    assert state() == (False, True, True)
    assert open_feed(READER)[1] == "miss"
    housekeeping.rebuild_wanted()
    assert (state(), rows()) == (AWAKE, 4)
    assert verification.verify().equal


def test_a_feed_put_to_rest_while_it_is_rebuilt_stays_at_rest(worker: Worker) -> None:
    rebuild._include(READER)
    put_to_rest(READER)  # a month later
    rebuild._fill(READER)
    assert (state(), rows()) == (RESTS, 0)
    worker.process(PostCreatedFactory(author_id=AUTHOR))
    assert feed(READER) == feed(AUTHOR)


def test_a_rebuild_waits_for_a_fan_out_that_did_not_see_the_feed_included(worker: Worker) -> None:
    post = PostCreatedFactory(author_id=AUTHOR)
    with elsewhere() as run:
        with transaction.atomic():
            locks.acquire_keys([AUTHOR])
            handlers.FeedHandlers().apply([post], careful=False, resume_after=None)
            rebuilding = run(rebuild.rebuild, [READER])
            eventually(lambda: state()[0] is False)
            assert state() == (
                False,
                True,
                False,
            )  # included, and not filled before this fan-out has ended
        rebuilding.result()
    assert feed(READER)[0] == post.post_id
    assert state() == AWAKE
    assert verification.verify().equal


def test_workers_share_the_feeds_to_rebuild(worker: Worker) -> None:
    open_feed(READER)
    assert state() == WANTED
    with elsewhere() as run:
        with transaction.atomic():
            locks.join_workers()  # as long as this lasts, the other one is at it
            rebuilding = run(housekeeping.rebuild_wanted)
            eventually(lambda: state() == (False, True, False))
            assert housekeeping.rebuild_wanted() == 0
        assert rebuilding.result() == 1
    assert state() == AWAKE


def test_two_rebuilds_and_a_walk_between_them_lose_nothing(worker: Worker) -> None:
    post = PostCreatedFactory(author_id=AUTHOR)

    rebuild._include(READER)  # by hand; nobody has read this feed for long …
    with transaction.atomic():
        housekeeping.put_to_rest([READER])
    with elsewhere() as run, transaction.atomic():
        locks.acquire_keys([AUTHOR])
        handlers.FeedHandlers().apply(
            [post], careful=False, resume_after=None
        )  # … which has seen it at rest, if it is
        run(rebuild._include, READER).result()  # by housekeeping, since the reader came back
        run(rebuild._fill, READER).result()  # the one by hand, which waited before
    assert feed(READER) == feed(AUTHOR)
    assert verification.verify().equal


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_post_deleted_while_a_feed_is_filled_is_not_in_it(worker: Worker, when: str) -> None:
    gone = feed(AUTHOR)[0]
    deletion = PostDeletedFactory(author_id=AUTHOR, post_id=gone)
    rebuild._include(READER)
    with elsewhere() as run:
        if when == "before":
            with transaction.atomic():
                locks.acquire_keys([AUTHOR])
                handlers.FeedHandlers().apply([deletion], careful=False, resume_after=None)
                filling = run(rebuild._fill, READER)
                eventually(somebody_waits)
        else:
            with transaction.atomic():
                rebuild._fill(READER)
                filling = run(worker.process, deletion)
                eventually(somebody_waits)
        filling.result()
    assert gone not in FeedEntry.objects.filter(user_id=READER).values_list("post_id", flat=True)
    assert rows() == 2
    assert verification.verify().equal
