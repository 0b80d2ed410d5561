"""The retry policy, in one place: what is tried again, how often and after how long.

- **transient** (PostgreSQL or the network away, deadlock, serialization failure, no partition yet):
  for as long as it takes;
- **too much at once** (statement timeout, no answer within `ANSWER_SECONDS`, out of memory, lock
  table full): `SIZE_ATTEMPTS` times, then less at once, and for the next batches too
  (`eventbus.portion`);
- **poison** (undecodable, unknown type, breaks the schema or a constraint): never;
- **retryable** (anything else, such as a bug in a handler): `MAX_ATTEMPTS` times, then it is a dead
  letter.
"""

import random
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import structlog
from django.db import (
    DataError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    close_old_connections,
)
from psycopg.errors import CheckViolation

from eventbus import metrics
from eventbus.database.deadline import AnswerTooLate, each_answer_within
from eventbus.exceptions import PoisonEvent, PublishFailed, RecordTooLarge

MAX_ATTEMPTS = 3
BASE_SECONDS = 0.1
SIZE_ATTEMPTS = 2
TRANSIENT_CAP_SECONDS = 10.0
# For so long a worker waits for an answer of PostgreSQL. Behind a proxy a server may vanish without
# any time-out of TCP's ending the connection, which is to the proxy.
ANSWER_SECONDS = 60.0

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)

# SQLSTATE classes: connection, rollback (deadlock, serialization), resources, operator
# intervention, system; and a lock time-out, a server that became a read-only standby, a transaction
# that PostgreSQL ended for idling.
TRANSIENT_SQLSTATES = ("08", "40", "53", "57", "58", "55P03", "25006", "25P0")


# Statement timed out or was cancelled, out of memory (which a full lock table is too), a configured
# limit, transaction timed out: transient, but what is asked for may be the reason, and then it
# fails for ever.
SIZE_SQLSTATES = ("57014", "53200", "53400", "25P04")

# Connection, authentication, no such database, shutting down or starting, too many connections.
UNREACHABLE_SQLSTATES = ("08", "28", "3D", "57P0", "53300")


def is_unreachable(error: BaseException) -> bool:
    """Tell whether PostgreSQL could not be talked to, as against: answered with an error."""
    if isinstance(error, InterfaceError):
        return True
    if not isinstance(error, OperationalError):
        return False
    sqlstate = getattr(error.__cause__, "sqlstate", None)
    return sqlstate is None or bool(sqlstate.startswith(UNREACHABLE_SQLSTATES))


def is_transient(error: BaseException) -> bool:
    """Tell whether trying the same thing later can succeed without anyone changing the event or the
    code.
    """
    if isinstance(error, PublishFailed | InterfaceError):
        return not isinstance(error, RecordTooLarge)
    if isinstance(error, IntegrityError):
        return _lacks_partition(error)
    if not isinstance(error, OperationalError | InternalError):
        return False
    sqlstate = getattr(error.__cause__, "sqlstate", None)
    if sqlstate is None:
        return isinstance(error, OperationalError)
    return bool(sqlstate.startswith(TRANSIENT_SQLSTATES))


def is_too_much(error: BaseException) -> bool:
    """Tell whether it may be asking for so much at once that fails.

    Always transient too: alone it is never poison.
    """
    if not is_transient(error):
        return False
    cause = error.__cause__
    return isinstance(cause, AnswerTooLate) or getattr(cause, "sqlstate", None) in SIZE_SQLSTATES


def _lacks_partition(error: IntegrityError) -> bool:
    """Tell whether a row found no partition, which somebody is about to make; a constraint would
    have a name.
    """
    cause = error.__cause__
    return isinstance(cause, CheckViolation) and cause.diag.constraint_name is None


def is_poison(error: BaseException) -> bool:
    """Tell whether the event itself is at fault, so that trying again is useless."""
    return isinstance(error, PoisonEvent | IntegrityError | DataError)


def backoff(attempt: int, cap: float = TRANSIENT_CAP_SECONDS) -> float:
    """Return the seconds to wait before retry `attempt` (1, 2, …): exponential with full jitter.

    Full jitter after M. Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
    """
    ceiling = min(cap, BASE_SECONDS * 2 ** min(attempt - 1, 30))
    return random.uniform(0, ceiling)  # noqa: S311 - spreads load, guards nothing


def reason(error: BaseException) -> str:
    """Return a bounded label for metrics: the class of the error."""
    return type(error).__name__


def until_possible(
    wait: Callable[[float], None], act: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Return what `act(…)` returns, repeating it for as long as it fails for a transient reason,
    of which one is that PostgreSQL has not answered a question within `ANSWER_SECONDS`.

    Any other exception of `act`, and whatever `wait(seconds)` raises, propagates.
    """
    attempt = 0
    while True:
        try:
            close_old_connections()
            with each_answer_within(ANSWER_SECONDS):
                return act(*args, **kwargs)
        except Exception as error:
            if not is_transient(error):
                raise
            attempt += 1
            _tell(error, attempt)
        wait(backoff(attempt))


def until_too_much(
    wait: Callable[[float], None], act: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Like `until_possible`, but raise what `is_too_much` at its second time in a row: less at once
    may work.
    """
    attempt = too_much = 0
    while True:
        try:
            close_old_connections()
            with each_answer_within(ANSWER_SECONDS):
                return act(*args, **kwargs)
        except Exception as error:
            too_much = too_much + 1 if is_too_much(error) else 0
            if not is_transient(error) or too_much >= SIZE_ATTEMPTS:
                raise
            attempt += 1
            _tell(error, attempt)
        wait(backoff(attempt))


def _tell(error: Exception, attempt: int) -> None:
    metrics.event_retry_total.labels("", reason(error)).inc()
    log.warning("waiting_for_dependency", attempt=attempt, error=str(error))
