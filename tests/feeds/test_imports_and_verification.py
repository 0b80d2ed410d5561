"""Proving and repairing feeds."""

from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import transaction
from django.utils import timezone

from feeds import housekeeping
from feeds.models import RESTING, Feed, FeedEntry, Follow
from posts.models import Fanout, Post
from posts.pagination import START
from tests.factories import PostCreatedFactory, apply, follow_all
from tests.feeds.model import feed, open_feed
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True)


def verify(*options: str) -> tuple[int, str]:
    out = StringIO()
    try:
        call_command("verify_feeds", *options, stdout=out)
    except SystemExit as leaving:
        return int(str(leaving.code)), out.getvalue()
    return 0, out.getvalue()


@pytest.fixture
def network(transactional_db: None) -> None:
    follow_all([2, 3], followee=1)
    apply(*[PostCreatedFactory(author_id=1) for _ in range(4)])


def test_right_feeds_are_proved_right(network: None) -> None:
    assert verify() == (
        0,
        "12 entries checked: 0 missing, 0 extra, 0 duplicate; 0 wrong follower counts or states\n",
    )


def _lose_an_entry() -> None:
    FeedEntry.objects.filter(user_id=2).first().delete()  # type: ignore[union-attr]


def _keep_a_deleted_post() -> None:
    Post.objects.filter(id=Post.objects.latest("id").id).update(deleted_event_id=1)


def _keep_an_unfollowed_author() -> None:
    Follow.objects.filter(follower_id=2).update(active=False)


def _invent_an_entry() -> None:
    FeedEntry.objects.create(user_id=2, post_id=2**57, author_id=1)


def _mistake_the_author() -> None:
    FeedEntry.objects.filter(user_id=2).update(author_id=9)


def _miscount() -> None:
    Feed.objects.filter(user_id=1).update(follower_count=7)


def _lose_a_count() -> None:
    Feed.objects.filter(user_id=1).delete()


def _leave_a_feed_at_rest_a_floor() -> None:
    Feed.objects.filter(user_id=2).update(idle=True)
    Follow.objects.filter(follower_id=2).update(idle=True)


def _leave_a_reader_out_of_the_fan_out() -> None:
    Follow.objects.filter(follower_id=2).update(idle=True)


def _serve_a_feed_at_rest() -> None:
    Feed.objects.filter(user_id=2).update(idle=True, floor=RESTING)


def _forget_to_watch_an_author() -> None:
    Post.objects.create(
        id=2**57, author_id=1, content="x", created_at=timezone.now(), fanout=Fanout.PULL
    )


def _push_what_is_pulled() -> None:
    Feed.objects.filter(user_id=1).update(pulled_since=timezone.now())
    Post.objects.filter(id=Post.objects.latest("id").id).update(fanout=Fanout.PULL)


def _push_to_nobody_what_is_pushed() -> None:
    Post.objects.create(
        id=2**57, author_id=1, content="x", created_at=timezone.now(), fanout=Fanout.PUSH
    )


def _lower_a_floor() -> None:
    newest = Post.objects.latest("id").id
    Feed.objects.filter(user_id=2).update(floor=newest)
    FeedEntry.objects.filter(user_id=2, post_id__lte=newest).delete()
    Feed.objects.filter(user_id=2).update(floor=0)


def _wake_a_feed_without_its_rows() -> None:
    with transaction.atomic():
        Feed.objects.filter(user_id=2).update(last_read_at="2025-01-01T00:00:00Z")
        housekeeping.put_to_rest([2])
    Feed.objects.filter(user_id=2).update(idle=False, floor=0)


@pytest.mark.parametrize(
    "damage",
    [
        _lose_an_entry,
        _keep_a_deleted_post,
        _keep_an_unfollowed_author,
        _invent_an_entry,
        _mistake_the_author,
        _miscount,
        _lose_a_count,
        _leave_a_feed_at_rest_a_floor,
        _leave_a_reader_out_of_the_fan_out,
        _serve_a_feed_at_rest,
        _forget_to_watch_an_author,
        _push_what_is_pulled,
        _push_to_nobody_what_is_pushed,
        _lower_a_floor,
        _wake_a_feed_without_its_rows,
    ],
)
def test_each_kind_of_damage_is_found_and_repaired(network: None, damage: Any) -> None:
    damage()
    status, report = verify()
    assert status == 1, report
    assert verify("--repair")[0] == 0
    assert verify()[0] == 0
    # And what comes next arrives, in pages cached before too.
    readers = [
        user
        for user in (1, 2, 3)
        if user == 1 or Follow.objects.filter(follower_id=user, active=True).exists()
    ]
    before = {user: open_feed(user)[0] for user in readers}
    assert before == {user: feed(user) for user in readers}
    Worker().process(post := PostCreatedFactory(author_id=1, post_id=2**57 + 1))
    assert {user: open_feed(user)[0] for user in readers} == {
        user: [post.post_id, *before[user]] for user in readers
    }
    assert verify()[0] == 0


@pytest.mark.parametrize("user", [2, 3])
def test_a_feed_that_rests_is_right_as_it_is(network: None, user: int) -> None:
    with transaction.atomic():
        Feed.objects.filter(user_id=user).update(last_read_at="2025-01-01T00:00:00Z")
        housekeeping.put_to_rest([user])
    assert verify() == (
        0,
        "8 entries checked: 0 missing, 0 extra, 0 duplicate; 0 wrong follower counts or states\n",
    )
    FeedEntry.objects.create(user_id=user, post_id=2**57, author_id=1)  # garbage
    assert verify("--repair")[0] == 0
    assert Feed.objects.get(user_id=user).idle


def test_damage_done_to_one_user_is_no_concern_of_another(network: None) -> None:
    _leave_a_reader_out_of_the_fan_out()
    assert (verify("--user", "3")[0], verify("--user", "2")[0]) == (0, 1)
    assert verify("--user", "2", "--repair")[0] == 0
    assert not Follow.objects.filter(idle=True).exists()


def test_one_users_feed_can_be_verified_alone(network: None) -> None:
    _lose_an_entry()
    assert verify("--user", "2")[0] == 1
    assert verify("--user", "3")[0] == 0


def test_rows_at_or_below_the_floor_are_nobodys_business(network: None) -> None:
    newest = Post.objects.latest("id").id
    Feed.objects.filter(user_id=2).update(floor=newest)
    FeedEntry.objects.filter(user_id=2).delete()
    assert verify()[0] == 0
    assert len(feed(2)) == 4
    assert Follow.objects.following_page(2, START, 5) == [1]
