"""What is written for a user at the very moment of the erasure does not survive it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event

import pytest
from django.db import transaction

from eventbus.deadletters.store import store
from eventbus.ids import idempotency
from eventbus.ids.idempotency import fresh
from eventbus.ids.snowflake import compose, milliseconds_of
from eventbus.models import DeadLetter, Erasure, IdempotencyKey
from feeds import erasure
from tests.eventbus.dead_letter_factories import a_dead_letter
from tests.factories import UserErasedFactory, apply
from tests.feeds.elsewhere import elsewhere

pytestmark = pytest.mark.django_db(transaction=True)

ERASED = 7_777_777_777
PATIENCE = 60


def reserve_a_key() -> None:
    idempotency.reserve(ERASED, "k", "a request")


def reserve_a_key_of_another() -> None:
    idempotency.reserve(8, "k", "a request")


def store_a_dead_letter() -> None:
    store([a_dead_letter(key=str(ERASED).encode(), value=b"{broken")])


@contextmanager
def written_but_not_committed(write: Callable[[], None]) -> Iterator[None]:
    """Have another process write, and commit only at the end: its disk is slow, or its standby."""
    written, may_commit = Event(), Event()

    @transaction.atomic
    def act() -> None:
        write()
        written.set()
        may_commit.wait(PATIENCE)

    with elsewhere() as run:
        done = run(act)
        assert written.wait(PATIENCE)
        try:
            yield
        finally:
            may_commit.set()
            done.result()


def erase_as_far_as_possible() -> Erasure:
    for _ in range(2 * len(erasure.STEPS)):
        Erasure.objects.filter(finished_at=None).update(due_at="1970-01-01T00:00:00Z")
        erasure.erase_part()
    return Erasure.objects.get()


@pytest.mark.parametrize("write", [reserve_a_key, store_a_dead_letter])
def test_an_erasure_waits_for_who_may_not_have_seen_its_mark(write: Callable[[], None]) -> None:
    with written_but_not_committed(write):
        apply(UserErasedFactory(user_id=ERASED, event_id=fresh().event_id))
        waiting = erase_as_far_as_possible()
        assert (waiting.step, waiting.finished_at) == ("writers", None)
    assert erase_as_far_as_possible().finished_at is not None
    assert not IdempotencyKey.objects.filter(user_id=ERASED).exists()
    assert not DeadLetter.objects.exists()


def test_an_erasure_does_not_wait_for_who_began_after_it_looked() -> None:
    apply(UserErasedFactory(user_id=ERASED, event_id=fresh().event_id))
    with written_but_not_committed(reserve_a_key):
        waiting = erase_as_far_as_possible()
        assert (waiting.step, waiting.resume_after > 0) == ("writers", True)
    with written_but_not_committed(reserve_a_key_of_another):
        assert erase_as_far_as_possible().finished_at is not None


def test_a_key_is_not_kept_of_a_write_from_before_the_erasure() -> None:
    soon = compose(milliseconds_of(fresh().event_id) + 60_000, 0, 0)
    apply(UserErasedFactory(user_id=ERASED, event_id=soon))
    reserve_a_key()
    reserve_a_key()
    assert not IdempotencyKey.objects.exists()
