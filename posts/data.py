"""The data of a post: a JSON object of its client's, which is stored and returned equal as JSON.

Within the code it is its compact JSON text, so that it is parsed once, where it comes in.
"""

import json
from collections.abc import Iterable
from decimal import Decimal
from math import nan
from typing import Any

import orjson

MAX_BYTES = 8 * 1024  # of compact JSON
MAX_DEPTH = 8
# Larger integers are not the same in every client: JavaScript's numbers are doubles.
MAX_NUMBER = 2**53 - 1
# PostgreSQL writes a number without an exponent, so that a small one would become a long text.
MIN_FRACTION = 1e-20


class DataRefused(ValueError):
    """Cannot be the data of a post; `code` says why in one word."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def text_of(data: object) -> str:
    """Return `data` as compact JSON. Raises `DataRefused` unless it is an object within the
    bounds.
    """
    if not isinstance(data, dict):
        raise DataRefused("data_not_an_object", "data must be a JSON object.")
    _check(data, depth=1)
    text = orjson.dumps(data)
    if len(text) > MAX_BYTES:
        raise DataRefused("data_too_large", f"data must not exceed {MAX_BYTES} bytes of JSON.")
    return text.decode()


def read_exactly(body: bytes, parsed: object) -> Any:
    """Return what `body` says, which is the JSON of `parsed`, as far as it can be kept as it is
    written: a number that cannot is NaN.

    Raises `DataRefused` for a key that an object has twice, of which other parsers keep the last,
    and for a body that is nested deeper than data may be, one level below: how deep `json` reads
    depends on the version of Python.
    """
    if _is_deeper(parsed, MAX_DEPTH + 1):
        raise _too_deep()
    return json.loads(body.decode(), object_pairs_hook=_object, parse_float=_fraction)


def compact(text: str) -> str:
    """Return data that is written as JSON as compact JSON. Raises `DataRefused`."""
    try:
        parsed = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise DataRefused("malformed_json", f"data is not JSON: {error}") from error
    return text_of(read_exactly(text.encode(), parsed))


def fragment(text: str | None) -> orjson.Fragment | None:
    """Return data for `orjson.dumps`, which puts it in as it is."""
    return None if text is None else orjson.Fragment(text)


def _is_deeper(value: object, levels: int) -> bool:
    if isinstance(value, dict):
        members: Iterable[object] = value.values()
    elif isinstance(value, list):
        members = value
    else:
        return False
    return levels == 0 or any(_is_deeper(member, levels - 1) for member in members)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise DataRefused("duplicate_key", "An object in the body has a key twice.")
    return found


def _fraction(text: str) -> float:
    number = float(text)
    if repr(number) == text:
        return number
    if number == 0:
        mantissa = text.lower().partition("e")[0]
        return nan if mantissa.strip("-0.") else number
    # 1.50 is 1.5 and 1E5 is 100000, but 0.1234567890123456789 is no double.
    is_same = len(text) <= 40 and Decimal(text) == Decimal(repr(number))
    return number if is_same else nan


def _check(value: object, depth: int) -> None:
    match value:
        case str():
            if "\0" in value:
                raise DataRefused("data_has_nul", "data must not contain the NUL character.")
        case bool() | None:
            pass
        case int() | float():
            if not _is_kept(value):
                raise _no_number()
        case dict() | list():
            _check_members(value, depth)


def _check_members(value: dict[str, Any] | list[Any], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _too_deep()
    if isinstance(value, list):
        for member in value:
            _check(member, depth + 1)
        return
    for key, member in value.items():
        _check(key, depth + 1)
        _check(member, depth + 1)


def _is_kept(number: float) -> bool:
    size = abs(number)
    return size == 0 or MIN_FRACTION <= size <= MAX_NUMBER


def _too_deep() -> DataRefused:
    return DataRefused("data_too_deep", f"data must not be nested deeper than {MAX_DEPTH} levels.")


def _no_number() -> DataRefused:
    return DataRefused(
        "data_number",
        "A number in data must be 0 or have a size of 1e-20 to 2^53-1, and be exactly what a double"
        " holds.",
    )
