"""Edits: what the highest event id says of content and of data, in whatever order events come."""

import random
from typing import Any

import pytest
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_django import Settings

from eventbus.exceptions import UnknownEventType
from feeds import handlers, verification
from feeds.handlers import FACTS, FeedHandlers
from feeds.models import FeedEntry
from feeds.timeline import Reader
from posts.models import Post, WaitingEdit
from posts.pagination import START
from tests.factories import (
    PostCreatedFactory,
    PostDeletedFactory,
    PostEditedFactory,
    UserErasedFactory,
    apply,
    follow_all,
)
from tests.feeds.model import expected_posts, open_feed, shown_post, with_repetitions
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True)


edits = st.tuples(
    st.integers(0, 2),  # of which post
    st.sampled_from([None, "", "one", "two"]),
    st.sampled_from(["stays", None, "{}", '{"a":1}']),
    st.booleans(),  # whether somebody else tries it
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(edits, max_size=12), st.sets(st.integers(0, 2)), st.integers(0, 2**32))
def test_any_order_with_repetitions_gives_the_same_posts(
    steps: list[tuple[int, str | None, str | None, bool]], deleted: set[int], seed: int
) -> None:
    posts = [
        PostCreatedFactory(author_id=1),
        PostCreatedFactory(author_id=2, data='{"b":2}'),
        PostCreatedFactory(author_id=2),
    ]
    facts: list[Any] = list(posts)
    for number, content, data, is_foreign in steps:
        post = posts[number]
        facts.append(
            PostEditedFactory(
                post_id=post.post_id,
                author_id=9 if is_foreign else post.author_id,
                content=content,
                changes_data=data != "stays" or content is None,
                data=None if data == "stays" else data,
            )
        )
    facts += [
        PostDeletedFactory(post_id=posts[n].post_id, author_id=posts[n].author_id) for n in deleted
    ]
    chance = random.Random(seed)
    delivered = with_repetitions(facts, chance)
    chance.shuffle(delivered)
    with transaction.atomic():
        while delivered:
            size = chance.randint(1, 6)
            apply(*delivered[:size], careful=True)
            delivered = delivered[size:]
        for post in posts:
            assert shown_post(post.post_id) == expected_posts(facts).get(post.post_id)
        assert not WaitingEdit.objects.exclude(author_id=9).exists()
        assert verification.verify().equal
        transaction.set_rollback(True)


def test_an_edit_that_comes_before_its_post_waits_for_it() -> None:
    post = PostCreatedFactory(content="old")
    first = PostEditedFactory(post_id=post.post_id, content="newer")
    second = PostEditedFactory(
        post_id=post.post_id, content=None, changes_data=True, data='{"a":1}'
    )
    apply(second)
    apply(first)
    assert shown_post(post.post_id) is None
    assert WaitingEdit.objects.count() == 2
    apply(post)
    assert shown_post(post.post_id) == expected_posts([post, first, second]).get(post.post_id)
    assert WaitingEdit.objects.count() == 0


def test_a_deletion_ends_the_wait() -> None:
    post = PostCreatedFactory()
    apply(PostEditedFactory(post_id=post.post_id))
    apply(PostDeletedFactory(post_id=post.post_id))
    assert WaitingEdit.objects.count() == 0
    apply(PostEditedFactory(post_id=post.post_id))
    assert WaitingEdit.objects.count() == 0
    apply(post)
    tombstone = Post.objects.get(id=post.post_id)
    assert (tombstone.content, tombstone.data) == ("", None)


def test_a_post_that_comes_after_its_author_was_erased_ends_the_wait_for_it() -> None:
    post = PostCreatedFactory(author_id=1)
    apply(PostEditedFactory(author_id=2, post_id=post.post_id, content="of somebody else's"))
    apply(UserErasedFactory(user_id=1))
    apply(post)
    assert shown_post(post.post_id) is None
    assert WaitingEdit.objects.count() == 0


def test_nobody_can_edit_or_keep_from_being_edited_someone_elses_post() -> None:
    post = PostCreatedFactory(author_id=1, content="mine")
    early = PostEditedFactory(author_id=2, post_id=post.post_id, content="theirs")
    mine = PostEditedFactory(author_id=1, post_id=post.post_id, content="mine, edited")
    apply(early, mine, PostDeletedFactory(author_id=1, post_id=1))
    apply(post)
    apply(PostEditedFactory(author_id=2, post_id=post.post_id, content="theirs"))
    row = shown_post(post.post_id)
    assert row is not None
    assert row.content == "mine, edited"


def test_the_place_in_feeds_and_their_rows_stay(django_assert_num_queries: Any) -> None:
    follow_all([2, 3], followee=1)
    posts = [PostCreatedFactory(author_id=1) for _ in range(3)]
    apply(*posts)
    before = list(FeedEntry.objects.values_list().order_by("user_id", "post_id"))
    edits = [PostEditedFactory(post_id=post.post_id, content="edited") for post in posts]
    with django_assert_num_queries(2):  # feeds rows, the edits
        FeedHandlers().apply([*edits, *edits], careful=False, resume_after=None)
    assert list(FeedEntry.objects.values_list().order_by("user_id", "post_id")) == before
    assert [row.content for row in Reader(2).read(START, 5)] == ["edited"] * 3


def test_an_edit_is_one_row_of_a_plan_however_many_followers_there_are(settings: Settings) -> None:
    settings.FEED_BATCH_MAX_ROWS = 100
    follow_all(range(10, 500), followee=1)
    edits = [PostEditedFactory(author_id=1) for _ in range(50)]
    assert FeedHandlers().plan(edits) == [edits]


@pytest.mark.parametrize("strategy", ["push", "pull"])
def test_every_cached_page_that_shows_it_is_void(settings: Settings, strategy: str) -> None:
    settings.FEED_STRATEGY = strategy
    settings.FEED_BATCH_MAX_ROWS = 2  # so that there are several parts
    readers = [1, 2, 3, 4, 5, 6]
    follow_all(readers[1:], followee=1)
    follow_all([7], followee=8)
    worker = Worker()
    post = PostCreatedFactory(author_id=1)
    worker.process(post)
    for reader in [*readers, 7]:
        open_feed(reader)
        assert open_feed(reader)[1] == "hit"
    worker.process(PostEditedFactory(author_id=1, post_id=post.post_id, content="edited"))
    assert {open_feed(reader)[1] for reader in readers} == {"miss"}
    assert open_feed(7)[1] == "hit"
    assert worker.dead_letters == []


def test_workers_of_the_release_before_make_dead_letters_that_the_next_ones_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Posts without data pass; of the others none is lost, nor the order of edits."""
    old = {key: parse for key, parse in FACTS.items() if key not in NEW}
    plain = PostCreatedFactory(author_id=1)
    rich = PostCreatedFactory(author_id=1, data='{"a":1}')
    edit = PostEditedFactory(author_id=1, post_id=rich.post_id, content="edited")
    edit_of_plain = PostEditedFactory(author_id=1, post_id=plain.post_id, content="edited too")
    facts = [plain, rich, edit, edit_of_plain]
    worker = Worker()
    with monkeypatch.context() as before:
        before.setattr(handlers, "FACTS", old)
        worker.process(*facts)
    assert [type(error) for error in worker.dead_letters] == [UnknownEventType] * 3
    row = shown_post(plain.post_id)
    assert row is not None
    assert row.edited_at is None

    replayed = Worker()
    replayed.process(edit_of_plain, edit, rich)
    assert replayed.dead_letters == []
    for post in (plain, rich):
        assert shown_post(post.post_id) == expected_posts(facts).get(post.post_id)
    assert WaitingEdit.objects.count() == 0


NEW = {("post.created", 2), ("post.edited", 1)}
