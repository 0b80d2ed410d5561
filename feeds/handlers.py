"""From an event to the function that applies it: what `run_fanout` does with a batch."""

from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

from django.conf import settings

from eventbus import cells, identity, kafka
from eventbus.cellmap import SLOTS, Slots
from eventbus.event import Event
from eventbus.exceptions import UnknownEventType
from eventbus.subscription import Handlers, Subscription
from feeds import blocks, erasure, fanout, follows, mutes, seen
from feeds.announcements import MARK, Change
from feeds.events import (
    BlockFact,
    FollowFact,
    MuteFact,
    UserBlocked,
    UserErased,
    UserFollowed,
    UserMuted,
    UserUnblocked,
    UserUnfollowed,
    UserUnmuted,
)
from feeds.models import Feed
from feeds.read import here
from feeds.seen import FeedSeen
from posts import edits
from posts.events import PostCreated, PostDeleted, PostEdited, PostFact

FeedFact = PostFact | FollowFact | MuteFact | BlockFact | FeedSeen | UserErased

FACTS: dict[tuple[str, int], Callable[[Event], FeedFact]] = {
    ("post.created", 1): PostCreated.from_event,
    ("post.created", 2): PostCreated.from_event,
    ("post.edited", 1): PostEdited.from_event,
    ("post.deleted", 1): PostDeleted.from_event,
    ("user.followed", 1): UserFollowed.from_event,
    ("user.unfollowed", 1): UserUnfollowed.from_event,
    ("user.muted", 1): UserMuted.from_event,
    ("user.unmuted", 1): UserUnmuted.from_event,
    ("user.blocked", 1): UserBlocked.from_event,
    ("user.unblocked", 1): UserUnblocked.from_event,
    ("feed.seen", 1): FeedSeen.from_event,
    ("user.erased", 1): UserErased.from_event,
}


def subscription() -> Subscription:
    """Return what `run_fanout` consumes and how."""
    return Subscription(
        topic=kafka.FEED_EVENTS,
        group=kafka.fanout_group(),
        lanes=settings.FEED_FANOUT_LANES,
        batch_max_events=settings.FEED_FANOUT_LANES * settings.FEED_BATCH_MAX_EVENTS,
        batch_max_wait=settings.FEED_BATCH_MAX_WAIT_MS / 1000,
        handlers=FeedHandlers(),
    )


class FeedHandlers(Handlers[FeedFact]):
    """Posts, follows and markers, applied to the feeds."""

    def to_fact(self, event: Event) -> FeedFact:
        """Return the typed fact in `event`. Raises `UnknownEventType` or `InvalidEvent`."""
        try:
            parse = FACTS[event.type, event.version]
        except KeyError:
            raise UnknownEventType(
                f"Nothing here handles {event.type} version {event.version}."
            ) from None
        return parse(event)

    def locked_keys(self, facts: Sequence[FeedFact]) -> set[int]:
        """Return the users who must be locked; see `Handlers.locked_keys`."""
        keys = {fact.key for fact in facts}
        return keys.union(*(fact.users for fact in facts if isinstance(fact, BlockFact)))

    def plan(self, facts: Sequence[FeedFact]) -> list[list[FeedFact]]:
        """Split `facts`, in order, into parts of `FEED_BATCH_MAX_EVENTS` and about
        `FEED_BATCH_MAX_ROWS` rows at most.

        A fact that exceeds this on its own stands alone; `apply` then works it off in several
        transactions.
        """
        followers = fanout.follower_counts(fact.key for fact in facts)
        parts: list[list[FeedFact]] = []
        rows_left = 0
        for fact in facts:
            rows = _rows(fact, followers)
            if rows > rows_left or len(parts[-1]) >= settings.FEED_BATCH_MAX_EVENTS:
                parts.append([])
                rows_left = settings.FEED_BATCH_MAX_ROWS
            parts[-1].append(fact)
            rows_left -= rows
        return parts

    def apply(
        self, facts: Sequence[FeedFact], *, careful: bool, resume_after: int | None
    ) -> int | None:
        """Apply `facts` within the current transaction; see `Handlers.apply`."""
        first = facts[0]
        if len(facts) == 1 and isinstance(first, PostFact) and _is_oversized(first):
            return _apply_part(first, resume_after)
        held = identity.held()
        facts = _concerning(held, facts)
        _ensure_feeds(facts, held)
        about_users = [fact for fact in facts if not isinstance(fact, PostFact)]
        if about_users:
            follows.lock_feeds(set().union(*(fact.users for fact in about_users)))
        for step in _steps(facts):
            _apply_step(step, careful)
        return None

    def after_commit(self, facts: Sequence[FeedFact]) -> None:
        """Make the cached first page of every feed that `facts` change void, and announce what has
        changed.
        """
        cell = cells.here()
        facts = _concerning(cell.holds, facts)
        authors = {fact.author_id for fact in facts if isinstance(fact, PostFact)}
        followers = {fact.follower_id for fact in facts if isinstance(fact, FollowFact)}
        others = {fact.user_id for fact in facts if isinstance(fact, MuteFact | UserErased)}
        others |= {user for fact in facts if isinstance(fact, BlockFact) for user in fact.users}
        marking = {fact.user_id for fact in facts if isinstance(fact, FeedSeen)}
        readers = followers | others
        created = [fact.post_id for fact in facts if isinstance(fact, PostCreated)]
        watched, by_every_page, deleted = Feed.objects.watched_among(authors, created)
        new_posts = _new_posts(facts, deleted)
        users = authors | readers | marking
        # Nobody reads pages of those whom the cell does not hold.
        users.difference_update(cell.strangers(users))
        changes = [Change(readers)] if readers else []
        changes += [Change(marking, post_ids=[MARK])] if marking else []
        changes += [Change([author], author, new_posts[author]) for author in by_every_page]
        for audience in follows.audience(authors - by_every_page):
            for author, audience_of in audience.items():
                pulled_from = author if author in watched else 0
                changes.append(Change(audience_of, pulled_from, new_posts[author]))
            here.pages.invalidate(users.union(*audience.values()), watched, changes)
            users, changes = set(), []


def _concerning(held: Slots, facts: Sequence[FeedFact]) -> Sequence[FeedFact]:
    """Return what a cell has to know: all posts and erasures, and what is about those it holds.

    A block is about both users: it keeps either from following the other.
    """
    if len(held) == SLOTS:
        return facts
    return [fact for fact in facts if _concerns(held, fact)]


def _concerns(held: Slots, fact: FeedFact) -> bool:
    match fact:
        case FollowFact():
            return cells.slot_of(fact.follower_id) in held
        case MuteFact() | FeedSeen():
            return cells.slot_of(fact.user_id) in held
        case BlockFact():
            return any(cells.slot_of(user) in held for user in fact.users)
        case _:
            return True


def _new_posts(facts: Sequence[FeedFact], deleted: Container[int]) -> dict[int, list[int]]:
    """Return by author which posts are new and nothing but new: none of an author who has also
    deleted or edited one.
    """
    new_posts: dict[int, list[int]] = defaultdict(list)
    for fact in facts:
        # Deleted are those of a replay, whose post was deleted long ago.
        if isinstance(fact, PostCreated) and fact.post_id not in deleted:
            new_posts[fact.author_id].append(fact.post_id)
    for fact in facts:
        if isinstance(fact, PostDeleted | PostEdited):
            new_posts.pop(fact.author_id, None)
    return new_posts


def _apply_step(facts: Sequence[Any], careful: bool) -> None:
    match facts[0]:
        case PostCreated():
            fanout.deliver(facts, careful=careful)
        case PostEdited():
            edits.apply_edits(facts)
        case PostDeleted():
            fanout.withdraw(facts)
        case UserFollowed():
            follows.apply_follows(facts)
        case UserUnfollowed():
            follows.apply_unfollows(facts)
        case MuteFact():
            mutes.apply_mutes(facts)
        case BlockFact():
            blocks.apply_blocks(facts)
        case FeedSeen():
            seen.apply_seen(facts)
        case UserErased():
            erasure.apply(facts)


def _apply_part(fact: PostFact, resume_after: int | None) -> int | None:
    if resume_after is None:
        _ensure_feeds([fact], identity.held())
    match fact:
        case PostCreated():
            return fanout.deliver_part(fact, resume_after)
        case PostDeleted():
            fanout.withdraw_later(fact)
    return None


def _is_oversized(fact: PostFact) -> bool:
    """Tell whether the feeds that a post is in do not fit one transaction; what a fact about
    two users changes is bounded by the cap.
    """
    limit: int = settings.FEED_BATCH_MAX_ROWS
    return _rows(fact, fanout.follower_counts([fact.key])) > limit


def _rows(fact: FeedFact, followers: dict[int, int]) -> int:
    """Return how many feed rows `fact` may change; an edit changes none, and its post."""
    if isinstance(fact, PostEdited):
        return 1
    count = followers.get(fact.key, 0)
    if isinstance(fact, PostCreated) and count >= fanout.pulled_from():
        return 1
    if isinstance(fact, PostFact):
        return count + 1
    if isinstance(fact, FeedSeen):
        return 1
    cap: int = settings.FEED_MAX_ENTRIES
    return 2 * cap if isinstance(fact, BlockFact) else cap


def _steps(facts: Sequence[FeedFact]) -> Iterator[list[FeedFact]]:
    """Group facts of one kind that may be applied at once, keeping the order of each author's own
    facts.

    Facts about different authors touch different rows, so only the turns of one author matter: the
    n-th run of equal kinds of every author goes into round n.
    """
    rounds: dict[tuple[int, type], list[FeedFact]] = {}
    turns: dict[int, tuple[int, type | None]] = {}
    for fact in facts:
        turn, kind = turns.get(fact.key, (0, None))
        if kind is not type(fact):
            turn += 1
            turns[fact.key] = (turn, type(fact))
        rounds.setdefault((turn, type(fact)), []).append(fact)
    for key in sorted(rounds, key=lambda key: key[0]):
        yield rounds[key]


def _ensure_feeds(facts: Sequence[FeedFact], held: Slots) -> None:
    """Give everyone concerned a row in `feeds`."""
    Feed.objects.ensure(set().union(*(fact.users for fact in facts)), held)
