"""From an event to the function that applies it: the subscription of `run_fanout`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from django.conf import settings

from eventbus import kafka
from eventbus.envelope import Event
from eventbus.exceptions import UnknownEventType
from eventbus.subscription import Subscription
from feeds import cache, fanout, follows
from feeds.events import UserFollowed, UserUnfollowed
from feeds.models import Feed
from posts.events import PostCreated, PostDeleted

Facts = Sequence[Any]

POSTS = (PostCreated.TYPE, PostDeleted.TYPE)
FACTS: dict[tuple[str, int], Callable[[Event], Any]] = {
    ("post.created", 1): PostCreated.from_event,
    ("post.deleted", 1): PostDeleted.from_event,
    ("user.followed", 1): UserFollowed.from_event,
    ("user.unfollowed", 1): UserUnfollowed.from_event,
}


def subscription() -> Subscription:
    """Return what `run_fanout` consumes and how."""
    return Subscription(
        topic=kafka.FEED_EVENTS,
        group=kafka.FANOUT_GROUP,
        batch_max_events=settings.FEED_BATCH_MAX_EVENTS,
        batch_max_wait=settings.FEED_BATCH_MAX_WAIT_MS / 1000,
        check=to_fact,
        plan=plan,
        apply=apply,
        after_commit=invalidate,
    )


def to_fact(event: Event) -> Any:
    """Return the typed fact in `event`. Raises `UnknownEventType` or `InvalidEvent`."""
    try:
        parse = FACTS[event.type, event.version]
    except KeyError:
        raise UnknownEventType(f"Nothing here handles {event.type} version {event.version}.") from None
    return parse(event)


def plan(events: Sequence[Event]) -> list[list[Event]]:
    """Split `events`, in order, so that each part writes at most about `FEED_BATCH_MAX_ROWS` rows.

    An event that exceeds this on its own stands alone; `apply` then works it off in several transactions.
    """
    followers = fanout.follower_counts([event.key for event in events])
    parts: list[list[Event]] = []
    rows_left = 0
    for event in events:
        rows = _rows(event, followers)
        if rows > rows_left:
            parts.append([])
            rows_left = settings.FEED_BATCH_MAX_ROWS
        parts[-1].append(event)
        rows_left -= rows
    return parts


def apply(events: Sequence[Event], *, careful: bool, resume_after: int | None) -> int | None:
    """Apply `events` within the current transaction; see `Subscription.apply`."""
    if len(events) == 1 and _is_oversized(events[0]):
        return _apply_part(to_fact(events[0]), resume_after)
    facts = [to_fact(event) for event in events]
    _ensure_feeds(facts)
    if follow_facts := [fact for fact in facts if isinstance(fact, UserFollowed | UserUnfollowed)]:
        follows.lock_feeds(follow_facts)
    for step in _steps(facts):
        _apply_step(step, careful)
    return None


def invalidate(events: Sequence[Event]) -> None:
    """Make the cached first page of every feed that `events` change void."""
    facts = [to_fact(event) for event in events]
    authors = {fact.author_id for fact in facts if isinstance(fact, PostCreated | PostDeleted)}
    followers = {fact.follower_id for fact in facts if isinstance(fact, UserFollowed | UserUnfollowed)}
    watched, by_every_page = Feed.objects.watched_among(authors)
    for users in follows.audience(authors - by_every_page, authors | followers):
        cache.invalidate(users, watched)


def _apply_step(facts: Facts, careful: bool) -> None:
    match facts[0]:
        case PostCreated():
            fanout.deliver(facts, careful=careful)
        case PostDeleted():
            fanout.withdraw(facts)
        case UserFollowed():
            follows.follow(facts)
        case UserUnfollowed():
            follows.unfollow(facts)


def _apply_part(fact: PostCreated | PostDeleted, resume_after: int | None) -> int | None:
    if resume_after is None:
        _ensure_feeds([fact])
    if isinstance(fact, PostCreated):
        return fanout.deliver_part(fact, resume_after)
    return fanout.withdraw_part(fact, resume_after)


def _is_oversized(event: Event) -> bool:
    """Tell whether the feeds a post is in do not fit one transaction; a follow is bounded by its cap."""
    limit: int = settings.FEED_BATCH_MAX_ROWS
    return event.type in POSTS and _rows(event, fanout.follower_counts([event.key])) > limit


def _rows(event: Event, followers: dict[int, int]) -> int:
    """Return how many feed rows `event` may change."""
    count = followers.get(event.key, 0)
    if event.type == PostCreated.TYPE and count >= fanout.pulled_from():
        return 1
    if event.type in POSTS:
        return count + 1
    cap: int = settings.FEED_MAX_ENTRIES
    return cap


def _steps(facts: Facts) -> Iterator[Facts]:
    """Group facts of one kind that may be applied at once, keeping the order of each author's own facts.

    Facts about different authors touch different rows, so only the turns of one author matter: the n-th run of
    equal kinds of every author goes into round n.
    """
    rounds: dict[tuple[int, type], list[Any]] = {}
    turns: dict[int, tuple[int, type | None]] = {}
    for fact in facts:
        author = _author(fact)
        turn, kind = turns.get(author, (0, None))
        if kind is not type(fact):
            turn += 1
            turns[author] = (turn, type(fact))
        rounds.setdefault((turn, type(fact)), []).append(fact)
    for key in sorted(rounds, key=lambda key: key[0]):
        yield rounds[key]


def _author(fact: Any) -> int:
    return fact.author_id if isinstance(fact, PostCreated | PostDeleted) else fact.followee_id


def _ensure_feeds(facts: Facts) -> None:
    """Give everyone concerned a row in `feeds`."""
    users = {_author(fact) for fact in facts}
    users |= {fact.follower_id for fact in facts if isinstance(fact, UserFollowed | UserUnfollowed)}
    Feed.objects.ensure(users)
