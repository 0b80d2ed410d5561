"""Calls to a server that does not answer: refused at once, but for one at a time, until it
answers.
"""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from eventbus import breaker
from eventbus.breaker import FAILURES, Breaker
from eventbus.exceptions import ServerAway
from tests.eventbus.events import counted


@pytest.fixture
def opened() -> Breaker:
    """A breaker whose server has just failed often enough."""
    breaker = Breaker("a server")
    for _ in range(FAILURES):
        breaker.enter()
        breaker.failed("no answer")
    return breaker


def is_refused(breaker: Breaker) -> bool:
    try:
        breaker.enter()
    except ServerAway:
        return True
    return False


def test_a_server_that_fails_now_and_then_is_not_taken_to_be_away() -> None:
    breaker = Breaker("a server")
    for _ in range(10):
        for _ in range(FAILURES - 1):
            breaker.enter()
            breaker.failed("no answer")
        breaker.enter()
        breaker.succeeded()
    assert not breaker.is_open
    assert not is_refused(breaker)


def test_one_at_a_time_tries_a_server_that_is_away(opened: Breaker) -> None:
    assert [is_refused(opened) for _ in range(5)] == [False, True, True, True, True]


def test_the_next_may_try_when_the_trial_has_failed(opened: Breaker) -> None:
    trial = opened.enter()
    opened.failed("still no answer", trial)
    assert [is_refused(opened) for _ in range(3)] == [False, True, True]


def test_calls_from_before_that_fail_let_nobody_else_try(opened: Breaker) -> None:
    opened.enter()
    opened.failed("no answer to a call that began earlier")
    opened.gave_up()
    assert is_refused(opened)


def test_of_many_threads_at_once_one_tries(opened: Breaker) -> None:
    together = Barrier(16)

    def enter(_number: int) -> bool:
        together.wait()
        return is_refused(opened)

    with ThreadPoolExecutor(16) as threads:
        assert sorted(threads.map(enter, range(16))) == [False] + [True] * 15


def test_the_first_answer_lets_everybody_in_again(opened: Breaker) -> None:
    opened.enter()
    opened.succeeded()
    assert not opened.is_open
    assert not any(is_refused(opened) for _ in range(5))


def test_who_gave_up_leaves_the_try_to_the_next(opened: Breaker) -> None:
    opened.gave_up(opened.enter())
    assert [is_refused(opened) for _ in range(2)] == [False, True]


def test_a_try_of_which_nothing_was_heard_again_keeps_nobody_out(
    opened: Breaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.enter()
    assert is_refused(opened)
    monkeypatch.setattr(breaker, "LOST_AFTER_SECONDS", 0.0)
    assert not is_refused(opened)


def test_its_state_is_a_metric(opened: Breaker) -> None:
    assert counted("breaker_open", server="a server") == 1
    opened.succeeded()
    assert counted("breaker_open", server="a server") == 0
