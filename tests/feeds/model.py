"""Feeds as they are read, and as they must be: kept in plain Python from the facts alone."""

import random
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from django.test import Client
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from eventbus.envelope import format_time
from eventbus.ids.snowflake import time_of
from feeds.events import (
    BlockFact,
    MuteFact,
    UserBlocked,
    UserErased,
    UserFollowed,
    UserMuted,
    UserUnfollowed,
)
from feeds.timeline import Reader
from feedsite.authentication import issue_token
from posts.events import PostCreated, PostDeleted, PostEdited, PostFact
from posts.models import Post, PostRow
from posts.pagination import START, Position
from tests.factories import (
    PostCreatedFactory,
    PostDeletedFactory,
    PostEditedFactory,
    UserBlockedFactory,
    UserErasedFactory,
    UserFollowedFactory,
    UserMutedFactory,
    UserUnblockedFactory,
    UserUnfollowedFactory,
    UserUnmutedFactory,
)

Step = tuple[str, int, int]  # kind, user, another user or which of the posts
FollowFact = UserFollowed | UserUnfollowed

# What happens, some of it oftener.
KINDS = ["post", "post", "edit", "delete", "follow", "follow", "unfollow"]
KINDS += ["mute", "unmute", "block", "unblock"]

# What one user says of another: the fact, and what it calls the two.
ABOUT_TWO: dict[str, tuple[Any, str, str]] = {
    "follow": (UserFollowedFactory, "follower_id", "followee_id"),
    "unfollow": (UserUnfollowedFactory, "follower_id", "followee_id"),
    "mute": (UserMutedFactory, "user_id", "muted_id"),
    "unmute": (UserUnmutedFactory, "user_id", "muted_id"),
    "block": (UserBlockedFactory, "blocker_id", "blocked_id"),
    "unblock": (UserUnblockedFactory, "blocker_id", "blocked_id"),
}


def some_step(users: Sequence[int], *more_kinds: str) -> SearchStrategy[Step]:
    """Return where hypothesis draws a step from: of `KINDS`, and of more."""
    user = st.sampled_from(users)
    return st.tuples(st.sampled_from([*KINDS, *more_kinds]), user, user)


def with_repetitions(facts: Sequence[Any], chance: random.Random, every: int = 3) -> list[Any]:
    """Return the facts, and after them one of `every` once more or oftener."""
    return [*facts, *chance.choices(facts, k=len(facts) // every)] if facts else []


def feed(user: int) -> list[int]:
    """Return the whole feed, read in pages of three."""
    posts: list[int] = []
    position = START
    while page := Reader(user).read(position, 3):
        posts += [row.id for row in page]
        position = Position(page[-1].id - 1, newer=False)
    return posts


def open_feed(user: int, query: str = "") -> tuple[list[int], str]:
    """Read the first page of the feed through the API; return it and what the cache did."""
    answer = Client(headers={"Authorization": f"Bearer {issue_token(user, '', 60)}"}).get(
        f"/feeds/{user}{query}"
    )
    assert answer.status_code == 200
    return [int(post["id"]) for post in answer.json()["results"]], answer.headers["X-Cache"]


def history(steps: Iterable[Step], first_user: int = 0) -> list[Any]:
    """Turn steps into facts, as clients would cause them; `first_user` is added to each user."""
    facts: list[Any] = []
    for kind, number, other_number in steps:
        one, other = first_user + number, first_user + other_number
        posts = [fact for fact in facts if isinstance(fact, PostCreated) and fact.author_id == one]
        if kind == "post":
            facts.append(PostCreatedFactory(author_id=one))
        elif kind == "delete" and posts:
            facts.append(
                PostDeletedFactory(post_id=posts[other % len(posts)].post_id, author_id=one)
            )
        elif kind == "edit" and posts:
            facts.append(edit_of(posts[other % len(posts)], other))
        elif kind == "erase":
            facts.append(UserErasedFactory(user_id=one))
        elif kind in ABOUT_TWO and one != other:
            facts.append(_about_two(kind, one, other))
    return facts


def _about_two(kind: str, one: int, other: int) -> Any:
    factory, actor, object_ = ABOUT_TWO[kind]
    return factory(**{actor: one, object_: other})


def edit_of(post: PostCreated, number: int) -> PostEdited:
    """Return an edit of content, of data or of both."""
    edit: PostEdited = PostEditedFactory(
        post_id=post.post_id,
        author_id=post.author_id,
        content=None if number % 3 == 0 else f"edited {number}",
        changes_data=number % 3 != 1,
        data=f'{{"number":{number}}}' if number % 3 != 1 else None,
    )
    return edit


def expected_posts(facts: Sequence[Any]) -> dict[int, PostRow]:
    """Return what is shown of each post, in plain Python: the last edit that names it decides
    content and data; none is shown that it, or its author, was deleted.
    """
    about = [fact for fact in _counting(facts) if isinstance(fact, PostFact)]
    posts = {fact.post_id: _row_of(fact) for fact in about if isinstance(fact, PostCreated)}
    edits = [fact for fact in about if isinstance(fact, PostEdited)]
    for edit in sorted(edits, key=lambda edit: edit.event_id):
        post = posts.get(edit.post_id)
        if post is not None and post.author_id == edit.author_id:
            posts[edit.post_id] = _edited(post, edit)
    deleted = {fact.post_id for fact in about if isinstance(fact, PostDeleted)}
    return {post_id: post for post_id, post in posts.items() if post_id not in deleted}


def _row_of(post: PostCreated) -> PostRow:
    created_at = format_time(post.created_at)
    return PostRow(post.post_id, post.author_id, post.content, post.data, created_at, None)


def _edited(post: PostRow, edit: PostEdited) -> PostRow:
    return post._replace(
        content=post.content if edit.content is None else edit.content,
        data=edit.data if edit.changes_data else post.data,
        edited_at=format_time(time_of(edit.event_id)),
    )


def shown_post(post_id: int) -> PostRow | None:
    """Return what is shown of a post, its data as compact JSON; None if it is deleted or not
    there.
    """
    found = Post.objects.find([post_id]).get(post_id)
    if found is None or found.is_deleted:
        return None
    data = found.row.data
    return found.row._replace(data=data and orjson.dumps(orjson.loads(data)).decode())


def _counting(facts: Sequence[Any]) -> list[Any]:
    """Return the facts that no erasure of someone they name comes after."""
    erased: dict[int, int] = {}
    for fact in facts:
        if isinstance(fact, UserErased):
            erased[fact.user_id] = max(fact.event_id, erased.get(fact.user_id, 0))
    return [fact for fact in facts if all(_id(fact) > erased.get(one, 0) for one in _whose(fact))]


def _whose(fact: Any) -> set[int]:
    """Return whose erasure undoes the fact: of a block only that of who blocks."""
    return {fact.blocker_id} if isinstance(fact, BlockFact) else fact.users


def _id(fact: Any) -> int:
    """Return by which id a fact is from before or after an erasure."""
    number: int = fact.post_id if isinstance(fact, PostCreated) else fact.event_id
    return number


def is_free(facts: Sequence[Any], follow: FollowFact) -> bool:
    """Tell whether no block is in the way of the follow, for all what happened from first to last:
    the pair is not blocked in the end, and has not been since the follow.
    """
    pair = {follow.follower_id, follow.followee_id}
    last: dict[int, BlockFact] = {}  # by who blocks
    for fact in sorted(facts, key=lambda fact: fact.event_id):
        if isinstance(fact, BlockFact) and fact.users == pair:
            last[fact.blocker_id] = fact
            if isinstance(fact, UserBlocked) and fact.event_id > follow.event_id:
                return False
    return not any(isinstance(fact, UserBlocked) for fact in last.values())


def expected_feed(facts: Sequence[Any], user: int) -> list[int]:
    """Return the feed in plain Python: the last event of a pair decides, a block ends the follows
    from before it, a deleted post stays deleted, and nothing from before a user was erased counts.
    """
    facts = _counting(facts)
    follows: dict[int, FollowFact] = {}
    mutes: dict[int, MuteFact] = {}
    for fact in sorted(facts, key=lambda fact: fact.event_id):
        if isinstance(fact, FollowFact) and fact.follower_id == user:
            follows[fact.followee_id] = fact
        if isinstance(fact, MuteFact) and fact.user_id == user:
            mutes[fact.muted_id] = fact
    authors = {user} | {
        author
        for author, follow in follows.items()
        if isinstance(follow, UserFollowed)
        and not isinstance(mutes.get(author), UserMuted)
        and is_free(facts, follow)
    }
    deleted = {fact.post_id for fact in facts if isinstance(fact, PostDeleted)}
    posts = {fact.post_id: fact.author_id for fact in facts if isinstance(fact, PostCreated)}
    mine = (post for post, author in posts.items() if author in authors and post not in deleted)
    return sorted(mine, reverse=True)
