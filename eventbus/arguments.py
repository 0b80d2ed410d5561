"""Types of command-line arguments.

Each returns what the text says, or raises `ArgumentTypeError` with a sentence.
"""

import math
from argparse import ArgumentParser, ArgumentTypeError
from datetime import UTC, datetime
from ipaddress import IPv4Address
from typing import NamedTuple

from eventbus.ids.snowflake import MAX_ID
from eventbus.terminal import visible

MIN_NUMBER = 0.001
MAX_RATE = 1_000_000
MAX_SECONDS = 31_536_000
MAX_TEXT_CHARS = 1_000
# What PostgreSQL can store, with room for its time zones.
OLDEST, NEWEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


class MetricsAddress(NamedTuple):
    """Where a worker serves its metrics and probes."""

    host: str
    port: int


def add_metrics_options(parser: ArgumentParser) -> None:
    """Let a command take `--metrics-port` and `--metrics-host`, for `metrics_address`."""
    parser.add_argument("--metrics-port", type=a_port, help="serve Prometheus metrics on this port")
    parser.add_argument(
        "--metrics-host",
        type=an_address,
        default="127.0.0.1",
        metavar="ADDRESS",
        help="of this address of the machine (127.0.0.1); 0.0.0.0 is all, as a container needs",
    )


def metrics_address(host: str, port: int | None) -> MetricsAddress | None:
    """Return where the metrics are to be served; None if nowhere."""
    return None if port is None else MetricsAddress(host, port)


def an_id(text: str) -> int:
    """An id of a user, an entry or a group."""
    return _whole_number(text, 1, MAX_ID)


def a_port(text: str) -> int:
    """A TCP port that somebody can be told of."""
    return _whole_number(text, 1, 65_535)


def an_address(text: str) -> str:
    """An IPv4 address of this machine."""
    try:
        return str(IPv4Address(text))
    except ValueError:
        raise ArgumentTypeError(f"'{_short(text)}' is not an IPv4 address") from None


def some_seconds(text: str) -> int:
    """A whole number of seconds, above 0."""
    return _whole_number(text, 1, MAX_SECONDS)


def an_offset(text: str) -> int:
    """A number to add to ids; the sum is checked where it is made."""
    return _whole_number(text, -MAX_ID, MAX_ID)


def a_rate(text: str) -> float:
    """A number a second, above 0."""
    return _positive_number(text, MAX_RATE)


def a_duration(text: str) -> float:
    """Seconds, above 0."""
    return _positive_number(text, MAX_SECONDS)


def a_text(text: str) -> str:
    """Text that PostgreSQL and a token can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ArgumentTypeError(f"'{visible(text)}' is not UTF-8") from None
    if "\0" in text:
        raise ArgumentTypeError("the NUL character cannot be used")
    if len(text) > MAX_TEXT_CHARS:
        raise ArgumentTypeError(f"must not exceed {MAX_TEXT_CHARS:,} characters")
    return text


def a_time(text: str) -> datetime:
    """A time by ISO 8601, in UTC if it names no zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(f"'{_short(text)}' is not an ISO 8601 time") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    if not OLDEST <= moment < NEWEST:
        raise ArgumentTypeError(f"must lie within the years {OLDEST.year} to {NEWEST.year - 1}")
    return moment


def _whole_number(text: str, least: int, most: int) -> int:
    # `int` alone takes other scripts' digits, underscores and blanks.
    digits = text.removeprefix("-")
    is_number = digits.isascii() and digits.isdecimal() and len(digits) <= len(str(MAX_ID))
    if not is_number or not least <= int(text) <= most:
        raise ArgumentTypeError(
            f"'{_short(text)}' is not a whole number from {least:,} to {most:,}"
        )
    return int(text)


def _positive_number(text: str, most: int) -> float:
    try:
        number = float(text) if text.isascii() else math.nan
    except ValueError:
        number = math.nan
    if not MIN_NUMBER <= number <= most:  # as what is no number never is
        raise ArgumentTypeError(f"'{_short(text)}' is not a number from {MIN_NUMBER} to {most:,}")
    return number


def _short(text: str) -> str:
    shown = visible(text)
    return shown if len(shown) <= 100 else f"{shown[:100]}…"
