"""A user is erased: what they did before counts no more, whenever it comes, and nothing of it stays
but what docs/how-to/erase.md says.
"""

import random
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_django import Settings

from eventbus import envelope
from eventbus.database.sql import fetch
from eventbus.deadletters.store import store
from eventbus.ids.idempotency import fresh
from eventbus.models import DeadLetter, Erasure, IdempotencyKey, ProcessedEvent
from eventbus.watch.outcomes import outcome_of
from feeds import erasure, fanout, housekeeping, verification
from feeds.imports import import_follows
from feeds.models import RESTING, Feed, FeedEntry, Follow, Withdrawal
from feeds.seen import FeedSeen
from feeds.timeline import Reader
from posts.events import PostCreated
from posts.models import Block, Post, WaitingEdit
from posts.pagination import START
from tests.eventbus.dead_letter_factories import a_dead_letter, an_entry
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
    apply,
    follow_all,
    next_id,
)
from tests.feeds.model import (
    Step,
    expected_feed,
    expected_posts,
    feed,
    history,
    shown_post,
    some_step,
    with_repetitions,
)

pytestmark = pytest.mark.django_db

USERS = range(1, 5)
ERASED = 7_777_777_777
SECRET = "a word that nobody else would use"


def make_due() -> None:
    """Let nothing wait for its time, which stands still within a transaction."""
    Erasure.objects.filter(finished_at=None).update(due_at="1970-01-01T00:00:00Z")


def erase_all(most: int = 10_000) -> int:
    """Do the parts of all erasures, at most so many; return how many there were."""
    done = 0
    while done < most and Erasure.objects.filter(finished_at=None).exists():
        make_due()
        erasure.erase_part()
        while fanout.withdraw_part():
            pass
        done += 1
    return done


def erase(user: int = ERASED) -> Any:
    fact = UserErasedFactory(user_id=user)
    apply(fact)
    erase_all()
    return fact


steps = some_step(USERS, "erase")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(steps, max_size=40), st.integers(0, 2**32), st.booleans())
def test_any_order_with_repetitions_and_parts_in_between_converges(
    history_steps: list[Step], seed: int, shuffled: bool
) -> None:
    chance = random.Random(seed)
    facts = history(history_steps)
    delivered = with_repetitions(facts, chance)
    if shuffled:
        chance.shuffle(delivered)
    with transaction.atomic():
        deliver(delivered, chance)
        erase_all()
        for user in USERS:
            assert feed(user) == expected_feed(facts, user)
        posts = expected_posts(facts)
        for post in (fact for fact in facts if isinstance(fact, PostCreated)):
            assert shown_post(post.post_id) == posts.get(post.post_id)
        assert not WaitingEdit.objects.exists()
        assert verification.verify().equal
        assert not Withdrawal.objects.exists()
        transaction.set_rollback(True)


def deliver(facts: Sequence[Any], chance: random.Random) -> None:
    """Apply facts in random batches, with parts of erasures between them."""
    left = list(facts)
    while left:
        size = chance.randint(1, 6)
        apply(*left[:size], careful=True)
        left = left[size:]
        erase_all(most=chance.randint(0, 4))


def test_an_erased_user_is_gone_from_every_feed_and_list() -> None:
    follow_all([2, 3], followee=ERASED)
    apply(UserFollowedFactory(follower_id=ERASED, followee_id=2))
    posts = [PostCreatedFactory(author_id=author) for author in (ERASED, 2, ERASED, 3)]
    apply(*posts)
    erase()
    assert feed(2) == [posts[1].post_id]
    assert feed(3) == [posts[3].post_id]
    assert feed(ERASED) == []
    assert not Follow.objects.exists()
    assert not FeedEntry.objects.filter(user_id=ERASED).exists()
    assert not FeedEntry.objects.filter(author_id=ERASED).exists()
    assert set(Feed.objects.values_list("user_id", "follower_count")) == {
        (ERASED, 0),
        (2, 0),
        (3, 0),
    }
    assert verification.verify().equal


def test_older_events_revive_nothing_and_newer_ones_count() -> None:
    before: list[Any] = [
        PostCreatedFactory(author_id=ERASED),
        PostCreatedFactory(author_id=ERASED),
        UserFollowedFactory(follower_id=2, followee_id=ERASED),
        UserFollowedFactory(follower_id=ERASED, followee_id=2),
        UserUnfollowedFactory(follower_id=3, followee_id=ERASED),
    ]
    before.append(PostDeletedFactory(author_id=ERASED, post_id=before[0].post_id))
    erased = erase()
    apply(*before, erased, careful=True)
    erase_all()
    assert not Follow.objects.exists()
    assert set(Post.objects.values_list("content", flat=True)) == {""}
    assert feed(2) == feed(ERASED) == []

    post = PostCreatedFactory(author_id=ERASED)
    apply(post, UserFollowedFactory(follower_id=2, followee_id=ERASED), *before, careful=True)
    assert feed(2) == feed(ERASED) == [post.post_id]
    assert verification.verify().equal


def test_a_post_between_an_erasure_and_its_parts_stays_in_no_feed_of_those_who_followed() -> None:
    follow_all([2], followee=ERASED)
    apply(UserErasedFactory(user_id=ERASED))
    post = PostCreatedFactory(author_id=ERASED)
    apply(post)
    assert feed(2) == [post.post_id]
    erase_all()
    assert feed(2) == []
    assert feed(ERASED) == [post.post_id]
    assert verification.verify().equal


def test_a_second_erasure_begins_anew_and_an_older_one_changes_nothing() -> None:
    first = UserErasedFactory(user_id=ERASED)
    apply(PostCreatedFactory(author_id=ERASED))
    second = erase()
    apply(first)
    row = Erasure.objects.get()
    assert (row.event_id, row.finished_at is not None) == (second.event_id, True)
    apply(PostCreatedFactory(author_id=ERASED))
    assert len(feed(ERASED)) == 1
    erase()
    assert feed(ERASED) == []
    assert not Post.objects.alive().exists()


def test_an_erasure_that_is_overtaken_by_a_second_erases_all_the_same(settings: Settings) -> None:
    apply(*[PostCreatedFactory(author_id=ERASED) for _ in range(3)])
    apply(UserErasedFactory(user_id=ERASED))
    erase_all(most=4)
    apply(PostCreatedFactory(author_id=ERASED))
    erase()
    assert not Post.objects.alive().exists()


def test_someone_unknown_can_be_erased() -> None:
    erase()
    assert Erasure.objects.get().finished_at is not None
    assert Feed.objects.get().floor == RESTING


def test_large_erasures_are_done_in_bounded_parts_that_others_overtake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(erasure, "ROWS", 3)
    monkeypatch.setattr(erasure, "PAIRS", 3)
    follow_all(range(10, 20), followee=ERASED)
    apply(*[UserFollowedFactory(follower_id=ERASED, followee_id=user) for user in range(10, 20)])
    apply(*[PostCreatedFactory(author_id=ERASED) for _ in range(10)])
    apply(PostCreatedFactory(author_id=10))
    apply(UserErasedFactory(user_id=ERASED))
    assert erase_all(most=2) == 2
    assert Post.objects.alive().filter(author_id=ERASED).count() == 4
    kept = PostCreatedFactory(author_id=ERASED)
    apply(kept)
    assert erase_all() > 12
    assert feed(ERASED) == [kept.post_id]
    assert verification.verify().equal
    assert not Follow.objects.exists()


@pytest.mark.parametrize("step", list(erasure.STEPS))
def test_a_part_whose_worker_died_before_it_was_noted_is_done_again(step: str) -> None:
    follow_all([2], followee=ERASED)
    apply(UserFollowedFactory(follower_id=ERASED, followee_id=2))
    apply(PostCreatedFactory(author_id=ERASED), PostCreatedFactory(author_id=2))
    apply(UserErasedFactory(user_id=ERASED))
    while Erasure.objects.get().step != step:
        erase_all(most=1)
    make_due()
    place = erasure._claim()
    assert place is not None
    with transaction.atomic():
        erasure.STEPS[step](place)
    assert erasure.erase_part() is False  # for some seconds it is taken to be under way
    erase_all()
    assert not Follow.objects.exists()
    assert not Post.objects.alive().filter(author_id=ERASED).exists()
    assert verification.verify().equal


def test_a_reader_who_comes_back_in_the_midst_of_it_reads_what_is_right() -> None:
    apply(UserFollowedFactory(follower_id=ERASED, followee_id=2))
    apply(PostCreatedFactory(author_id=2))
    apply(UserErasedFactory(user_id=ERASED))
    reader = Reader(ERASED)
    reader.read(START, 10)
    reader.note()
    assert housekeeping.rebuild_wanted() == 1
    erase_all()
    assert feed(ERASED) == []
    assert not FeedEntry.objects.filter(user_id=ERASED).exists()
    assert verification.verify().equal


def test_a_mute_from_before_does_not_hide_who_is_followed_after() -> None:
    apply(UserMutedFactory(user_id=2, muted_id=ERASED), UserErasedFactory(user_id=ERASED))
    post = PostCreatedFactory(author_id=ERASED)
    apply(post, UserFollowedFactory(follower_id=2, followee_id=ERASED))
    erase_all()
    assert feed(2) == [post.post_id]
    assert verification.verify().equal


@pytest.mark.parametrize("erasure_first", [True, False])
def test_nobody_is_rid_of_a_block_by_being_erased(erasure_first: bool) -> None:
    block, erased = (
        UserBlockedFactory(blocker_id=2, blocked_id=ERASED),
        UserErasedFactory(user_id=ERASED),
    )
    for fact in [erased, block] if erasure_first else [block, erased]:
        apply(fact)
        erase_all()
    post = PostCreatedFactory(author_id=2)
    apply(post, UserFollowedFactory(follower_id=ERASED, followee_id=2))
    assert feed(ERASED) == []
    assert Block.objects.among(ERASED, [2]) == {2}
    assert verification.verify().equal
    apply(UserUnblockedFactory(blocker_id=2, blocked_id=ERASED))
    assert feed(ERASED) == [post.post_id]


def test_a_block_from_before_does_not_hold_who_is_followed_after() -> None:
    block = UserBlockedFactory(blocker_id=ERASED, blocked_id=2)
    apply(block, UserErasedFactory(user_id=ERASED))
    post = PostCreatedFactory(author_id=ERASED)
    apply(post, UserFollowedFactory(follower_id=2, followee_id=ERASED))
    erase_all()
    assert feed(2) == [post.post_id]
    apply(block, careful=True)  # replayed from the log
    assert feed(2) == [post.post_id]
    assert not Block.objects.exists()
    assert verification.verify().equal


@pytest.mark.parametrize("erasure_first", [True, False])
def test_a_marker_from_before_is_none(erasure_first: bool) -> None:
    old, erased = FeedSeen(next_id(), ERASED, next_id()), UserErasedFactory(user_id=ERASED)
    apply(*([erased, old] if erasure_first else [old, erased]))
    assert Feed.objects.get().seen_post_id is None
    new = FeedSeen(next_id(), ERASED, next_id())
    apply(new, old, erased, careful=True)
    assert Feed.objects.get().seen_post_id == new.post_id


def test_an_imported_file_does_not_bring_pairs_of_an_erased_user_back() -> None:
    erase()
    done = import_follows([(2, ERASED), (ERASED, 2), (3, 2)])
    assert done.new_follows == 1
    assert Follow.objects.get().follower_id == 3
    assert verification.verify().equal


def test_nothing_of_an_erased_user_is_in_any_table_but_what_is_documented() -> None:
    post = PostCreatedFactory(author_id=ERASED, content=SECRET, data=f'{{"told": "{SECRET}"}}')
    gone = PostDeletedFactory(author_id=ERASED, post_id=post.post_id - 1)
    early = PostEditedFactory(author_id=ERASED, post_id=gone.post_id - 1, content=SECRET)
    acts = [
        post,
        gone,
        PostEditedFactory(author_id=ERASED, post_id=post.post_id, content=f"still {SECRET}"),
        early,
        UserFollowedFactory(follower_id=2, followee_id=ERASED),
        UserFollowedFactory(follower_id=ERASED, followee_id=2),
        UserUnfollowedFactory(follower_id=3, followee_id=ERASED),
        UserUnfollowedFactory(follower_id=ERASED, followee_id=3),
        UserMutedFactory(user_id=ERASED, muted_id=4),
        UserMutedFactory(user_id=4, muted_id=ERASED),
        UserBlockedFactory(blocker_id=ERASED, blocked_id=5),
        UserBlockedFactory(blocker_id=5, blocked_id=ERASED),
        UserUnmutedFactory(user_id=5, muted_id=ERASED),
    ]
    apply(*acts)
    assert {("posts", "data"), ("waiting_edits", "content")} <= tables_with(SECRET)
    note_processed(acts)
    IdempotencyKey.objects.create(
        user_id=ERASED, key="k", fingerprint="f", event_id=post.event_id, object_id=post.post_id
    )
    erased = UserErasedFactory(user_id=ERASED)
    apply(erased)
    note_processed([erased])
    erase_all()
    assert tables_with(SECRET) == set()
    assert tables_with(str(ERASED)) == {
        ("posts", "author_id"),  # tombstones
        ("feeds", "user_id"),
        ("erasures", "user_id"),  # the mark
        ("processed_events", "actor_id"),  # of the erasure itself
        ("blocks", "blocked_id"),  # by others
    }
    assert Post.objects.filter(deleted_event_id=None).count() == 0
    assert ProcessedEvent.objects.get(actor_id=ERASED).type == "user.erased"
    apply(*acts, careful=True)
    assert tables_with(SECRET) == set()
    ProcessedEvent.objects.exclude(type="user.erased").delete()
    note_processed(acts)
    assert ProcessedEvent.objects.get(actor_id=ERASED).type == "user.erased"
    assert tables_with(str(ERASED)) == {
        ("posts", "author_id"),
        ("feeds", "user_id"),
        ("erasures", "user_id"),
        ("processed_events", "actor_id"),
        ("blocks", "blocked_id"),
    }


NAMES = f'"{ERASED}"'.encode()


@pytest.mark.parametrize(
    ("dead_letter", "stays"),
    [
        ({"key": str(ERASED).encode(), "value": b"\xff\x00"}, False),
        ({"value": b'{"actor_id": %b}' % NAMES}, False),
        ({"value": b'{"payload": {"follower_id": %b}}' % NAMES}, False),
        ({"value": b"{broken, by " + NAMES}, False),
        # Somebody else's, who only mentions the number.
        ({"value": b'{"actor_id": "7", "payload": {"content": %b}}' % NAMES}, True),
        ({"value": b'{"actor_id": "7", "payload": {"data": {"a_id": %b}}}' % NAMES}, True),
        ({"value": b'{"actor_id": "%d1"}' % ERASED}, True),
        # A block of the user is another's.
        ({"value": b'{"type": "user.blocked", "actor_id": "7"}', "key": b"%d" % ERASED}, True),
        # Another user's erasure, which the user asked for, has to happen all the same.
        ({"key": b"7", "value": b'{"type": "user.erased", "actor_id": %b}' % NAMES}, True),
    ],
)
def test_dead_letters_that_are_about_an_erased_user_go_and_are_stored_no_more(
    dead_letter: dict[str, Any], stays: bool
) -> None:
    an_entry(**dead_letter, event_id=41)
    erased = erase()
    assert DeadLetter.objects.exists() == stays
    DeadLetter.objects.all().delete()
    record = a_dead_letter(**dead_letter, event_id=42)
    store([record, record])
    # What is no JSON names whom its key does, and nobody else.
    is_broken = dead_letter["value"].startswith(b"{broken")
    assert DeadLetter.objects.exists() == (stays or is_broken)
    later = a_dead_letter(**dead_letter, event_id=erased.event_id + 1)
    store([later])
    assert DeadLetter.objects.filter(event_id=erased.event_id + 1).exists()


@pytest.mark.parametrize("stored_first", [True, False])
def test_an_event_whose_dead_letter_is_not_kept_is_told_to_be_processed(stored_first: bool) -> None:
    post = PostCreatedFactory(author_id=ERASED, event_id=fresh().event_id)
    event = post.to_event()
    record = a_dead_letter(
        key=str(ERASED).encode(),
        value=envelope.encode(event),
        event_id=post.event_id,
        event_type=event.type,
    )
    assert state_of(post.event_id) == ("pending", None)
    erased = UserErasedFactory(user_id=ERASED, event_id=fresh().event_id)
    if stored_first:
        store([record])
    apply(erased)
    erase_all()
    store([record])
    assert not DeadLetter.objects.exists()
    assert state_of(post.event_id) == ("processed", "post.created")
    assert ProcessedEvent.objects.get().actor_id is None


def test_a_dead_letter_that_is_not_kept_says_nothing_of_an_event_that_only_its_headers_name() -> (
    None
):
    other = fresh().event_id
    erased = UserErasedFactory(user_id=ERASED, event_id=fresh().event_id)
    apply(erased)
    body = envelope.encode(PostCreatedFactory(author_id=ERASED).to_event())
    store([a_dead_letter(key=str(ERASED).encode(), value=body, event_id=other)])
    assert not DeadLetter.objects.exists()
    assert state_of(other) == ("pending", None)


def state_of(event_id: int) -> tuple[str, str | None]:
    outcome = outcome_of(event_id)
    assert outcome is not None
    return outcome.state, outcome.type


def test_many_dead_letters_are_looked_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure, "DEAD_LETTERS", 2)
    for number in range(5):
        an_entry(key=str(ERASED if number % 2 else 7).encode())
    erase()
    assert [bytes(entry.key or b"") for entry in DeadLetter.objects.all()] == [b"7"] * 3


def note_processed(facts: Sequence[Any]) -> None:
    events = [fact.to_event() for fact in facts]
    ProcessedEvent.objects.record(events, [0.0] * len(events), uuid4())


def tables_with(text: str) -> set[tuple[str, str]]:
    """Return every table and column, of whatever type, in which some value has `text` in it."""
    columns = fetch(
        "SELECT table_name, column_name, data_type FROM information_schema.columns "
        "JOIN information_schema.tables USING (table_schema, table_name) "
        "WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"
    )
    found = set()
    for table, column, kind in columns:
        value = f'"{column}"::text'
        if kind == "bytea":
            value = f"encode(\"{column}\", 'escape')"
        [(is_in,)] = fetch(
            f'SELECT EXISTS (SELECT FROM "{table}" WHERE position(%s IN {value}) > 0)',  # noqa: S608
            [text],
        )
        if is_in:
            found.add((table, column))
    return found
