"""The `posts` table: stored once, buried for good, listed by author."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from eventbus.database.sql import fetch
from eventbus.envelope import format_time
from posts.data import text_of
from posts.events import PostCreated
from posts.models import Fanout, Post
from posts.pagination import START, Position
from tests.factories import PostCreatedFactory, PostDeletedFactory
from tests.posts.test_data import objects

pytestmark = pytest.mark.django_db

MANY = 300


def ids_of(posts: Sequence[PostCreated]) -> list[int]:
    return [post.post_id for post in posts]


def test_a_stored_post_is_what_its_event_says_and_keeps_how_it_is_fanned_out() -> None:
    fact = PostCreatedFactory(author_id=7, content="hello 世界")
    assert Post.objects.store([fact]) == {fact.post_id}
    post = Post.objects.get(id=fact.post_id)
    assert (post.author_id, post.content, post.created_at) == (7, "hello 世界", fact.created_at)
    assert (post.fanout, post.deleted_event_id) == (Fanout.PUSH, None)


def test_data_is_kept_equal_as_json_and_goes_with_the_post() -> None:
    data = {"b": [1, 2.5, 1e-20, None], "": {"a": "\\u0000 🌍"}}
    fact = PostCreatedFactory(content="", data=text_of(data))
    plain = PostCreatedFactory(author_id=fact.author_id)
    Post.objects.store([fact, plain])
    found = Post.objects.find([fact.post_id])[fact.post_id]
    assert found.row.content == ""
    assert json.loads(found.row.data or "") == Post.objects.get(id=fact.post_id).data == data
    newest, older = Post.objects.page_of(fact.author_id, START, 2)
    assert (newest.data, older.data) == (None, found.row.data)
    Post.objects.leave_tombstones([PostDeletedFactory(post_id=fact.post_id)])
    assert Post.objects.get(id=fact.post_id).data is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(objects)
def test_postgresql_returns_any_data_equal_as_json(data: dict[str, Any]) -> None:
    [(kept,)] = fetch("SELECT %s::jsonb::text", [text_of(data)])
    assert json.loads(kept) == data


def test_only_new_posts_are_reported_and_those_there_already_stay_as_they_are() -> None:
    old = PostCreatedFactory(content="first")
    Post.objects.store([old])
    again = PostCreatedFactory(post_id=old.post_id, content="second")
    new = PostCreatedFactory()
    assert Post.objects.store([again, new, new]) == {new.post_id}
    assert Post.objects.get(id=old.post_id).content == "first"


def test_any_number_of_posts_is_stored_and_buried_in_one_statement_each(
    django_assert_num_queries: Any,
) -> None:
    posts = [PostCreatedFactory() for _ in range(MANY)]
    with django_assert_num_queries(1):
        Post.objects.store(posts)
    with django_assert_num_queries(1):
        Post.objects.leave_tombstones([PostDeletedFactory(post_id=post.post_id) for post in posts])
    assert (Post.objects.count(), Post.objects.alive().count()) == (MANY, 0)


def test_a_buried_post_is_a_tombstone_without_content_that_names_its_first_deletion() -> None:
    fact = PostCreatedFactory()
    Post.objects.store([fact])
    first, second = (PostDeletedFactory(post_id=fact.post_id) for _ in range(2))
    Post.objects.leave_tombstones([first])
    Post.objects.leave_tombstones([second])
    post = Post.objects.get(id=fact.post_id)
    assert (post.content, post.deleted_event_id) == ("", first.event_id)


def test_one_post_deleted_twice_in_a_batch_is_buried_once() -> None:
    fact = PostCreatedFactory()
    Post.objects.store([fact])
    Post.objects.leave_tombstones([PostDeletedFactory(post_id=fact.post_id) for _ in range(2)])
    assert Post.objects.alive().count() == 0


def test_a_tombstone_that_comes_before_the_post_keeps_it_away() -> None:
    fact = PostCreatedFactory(author_id=7)
    Post.objects.leave_tombstones([PostDeletedFactory(author_id=7, post_id=fact.post_id)])
    assert Post.objects.store([fact]) == set()
    post = Post.objects.get(id=fact.post_id)
    assert (post.author_id, post.content, post.created_at) == (7, "", fact.created_at)


def test_nobody_can_delete_someone_elses_post() -> None:
    fact = PostCreatedFactory(author_id=1, content="mine")
    Post.objects.store([fact])
    Post.objects.leave_tombstones([PostDeletedFactory(author_id=2, post_id=fact.post_id)])
    post = Post.objects.get(id=fact.post_id)
    assert (post.content, post.deleted_event_id) == ("mine", None)


@pytest.fixture
def posts() -> list[PostCreated]:
    """Five posts of user 1, the third of them deleted, among posts of others."""
    mine: list[PostCreated] = [PostCreatedFactory(author_id=1) for _ in range(5)]
    Post.objects.store([*mine, *[PostCreatedFactory(author_id=2) for _ in range(5)]])
    Post.objects.leave_tombstones([PostDeletedFactory(author_id=1, post_id=mine[2].post_id)])
    return mine


def page(position: Position, limit: int = 10) -> list[int]:
    return [row.id for row in Post.objects.page_of(1, position, limit)]


def test_a_page_of_an_author_shows_their_living_posts_newest_first(
    posts: list[PostCreated],
) -> None:
    first, second, _deleted, fourth, fifth = ids_of(posts)
    assert page(START) == [fifth, fourth, second, first]
    assert page(START, limit=3) == [fifth, fourth, second]


def test_towards_older_posts_a_page_starts_at_its_position(posts: list[PostCreated]) -> None:
    first, second, deleted, *_ = ids_of(posts)
    assert page(Position(deleted, newer=False)) == [second, first]
    assert page(Position(second, newer=False), limit=1) == [second]
    assert page(Position(first - 1, newer=False)) == []


def test_towards_newer_posts_a_page_starts_above_its_position_with_the_nearest(
    posts: list[PostCreated],
) -> None:
    first, second, _deleted, fourth, fifth = ids_of(posts)
    assert page(Position(first, newer=True)) == [second, fourth, fifth]
    assert page(Position(first, newer=True), limit=2) == [second, fourth]
    assert page(Position(fifth, newer=True)) == []


def test_a_page_is_one_query_and_shows_the_whole_row(
    posts: list[PostCreated], django_assert_num_queries: Any
) -> None:
    newest = posts[-1]
    with django_assert_num_queries(1):
        row = Post.objects.page_of(1, START, 1)[0]
    created_at = format_time(newest.created_at)
    assert row == (newest.post_id, 1, newest.content, None, created_at, None)
