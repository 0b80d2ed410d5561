"""`docs/event.schema.json`, by which others read our events, takes and refuses what the decoder
does.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest
from django.conf import settings
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from eventbus import envelope
from eventbus.exceptions import PoisonEvent
from feeds.handlers import FACTS
from tests.api.hostile import json_suite, naughty_strings
from tests.e2e.real_data import DATA

SCHEMA = json.loads((Path(settings.BASE_DIR) / "docs/event.schema.json").read_text())
USER, OTHER = "77", "78"
POST = str(2**57)
MISSING = object()

PAYLOADS: dict[tuple[str, int], dict[str, Any]] = {
    ("post.created", 1): {"post_id": POST, "content": "hello"},
    ("post.created", 2): {"post_id": POST, "content": "", "data": {"a": [1, None]}},
    ("post.edited", 1): {"post_id": POST, "data": None},
    ("post.deleted", 1): {"post_id": POST},
    ("user.followed", 1): {"follower_id": OTHER},
    ("user.unfollowed", 1): {"follower_id": OTHER},
    ("user.muted", 1): {"user_id": OTHER},
    ("user.unmuted", 1): {"user_id": OTHER},
    ("user.blocked", 1): {"blocker_id": OTHER},
    ("user.unblocked", 1): {"blocker_id": OTHER},
    ("feed.seen", 1): {"post_id": POST},
    ("user.erased", 1): {},
}
# Wrong in one place or another, and right in some.
VALUES = [
    MISSING,
    None,
    True,
    0,
    1,
    -1,
    1.5,
    2**63,
    [],
    {},
    {"a": 1},
    "",
    "0",
    "1",
    "01",
    "+1",
    " 1",
    "１",
    str(2**63 - 1),
    str(2**63),
    "9" * 19,
    "1" * 20,
    "a\0b",
    "x" * 64,
    "x" * 65,
    "世" * 5_000,
    "世" * 5_001,
    "2026-01-02T12:00:00Z",
    "2026-01-02T12:00:00.345+05:30",
    "2026-01-02 12:00:00Z",
    "2026-01-02T24:00:00Z",
    "2026-01-02T12:00:00",
    "2026-W01-1T12:00:00Z",
]
FIELDS = ["event_id", "type", "version", "actor_id", "occurred_at", "payload"]
FIELDS += ["post_id", "content", "data", "follower_id", "user_id", "blocker_id"]
CLOCK_FIELDS = ("event_id", "post_id")
OF_THE_ACTOR = ("post.", "feed.")  # whose key must be the actor
strings = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@cache
def validator() -> Draft202012Validator:
    Draft202012Validator.check_schema(SCHEMA)
    return Draft202012Validator(SCHEMA)


def event(kind: tuple[str, int]) -> dict[str, Any]:
    return {
        "event_id": POST,
        "type": kind[0],
        "version": kind[1],
        "actor_id": USER,
        "occurred_at": "2026-01-02T12:00:00.345Z",
        "payload": dict(PAYLOADS[kind]),
    }


def is_taken(value: bytes, key: str = USER) -> bool:
    """Tell whether a worker takes this event, or one of a type it does not know could be."""
    try:
        found = envelope.decode(value, key.encode())
        parse = FACTS.get((found.type, found.version))
        if parse is not None:
            parse(found)
    except PoisonEvent:
        return False
    return True


def is_described(value: Any) -> bool:
    return bool(validator().is_valid(value))


def is_described_json(text: bytes) -> bool:
    try:
        return is_described(orjson.loads(text))
    except orjson.JSONDecodeError:
        return False


def test_each_event_that_a_worker_takes_is_described() -> None:
    described = {
        (rule["if"]["properties"]["type"]["const"], rule["if"]["properties"]["version"]["const"])
        for rule in SCHEMA["allOf"]
    }
    assert described == FACTS.keys() == PAYLOADS.keys()


@pytest.mark.parametrize("kind", PAYLOADS, ids=lambda kind: f"{kind[0]} {kind[1]}")
def test_each_kind_of_event_is_valid_and_taken(kind: tuple[str, int]) -> None:
    assert is_taken(orjson.dumps(event(kind)))
    assert is_described(event(kind))
    more = event(kind) | {"of_a_later_release": 1}
    assert is_taken(orjson.dumps(more))
    assert is_described(more)


def assert_told_alike(kind: tuple[str, int], name: str, value: Any) -> None:
    """Fail unless both take the event with this value in one place, or both refuse it."""
    changed = event(kind)
    place = changed if name in changed else changed["payload"]
    place[name] = value
    if value is MISSING:
        del place[name]
    # That the key must be the actor is no matter of the value.
    key = USER
    actor = changed.get("actor_id")
    if kind[0].startswith(OF_THE_ACTOR) and isinstance(actor, str):
        key = actor
    assert is_taken(orjson.dumps(changed), key) == is_described(changed), changed


@pytest.mark.parametrize("kind", PAYLOADS, ids=lambda kind: f"{kind[0]} {kind[1]}")
def test_what_is_changed_is_refused_by_both_or_by_none(kind: tuple[str, int]) -> None:
    for name in FIELDS:
        for value in VALUES:
            # What only a clock can tell is no matter of a schema.
            if not (name in CLOCK_FIELDS and value == str(2**63 - 1)):
                assert_told_alike(kind, name, value)


@given(
    kind=st.sampled_from(sorted(PAYLOADS)),
    name=st.sampled_from(FIELDS),
    value=st.none() | st.booleans() | st.integers(-(2**63), 2**63) | strings | st.lists(strings),
)
def test_whatever_is_put_in_is_refused_by_both_or_by_none(
    kind: tuple[str, int], name: str, value: Any
) -> None:
    assert_told_alike(kind, name, value)


@pytest.mark.skipif(not DATA.exists(), reason="the JSON test suite is not beside the repository")
def test_no_file_of_the_json_test_suite_is_an_event_to_either() -> None:
    head = orjson.dumps(event(("user.erased", 1)) | {"payload": 0}).removesuffix(b"0}")
    for name, content in json_suite():
        assert not is_taken(content), name
        assert not is_described_json(content), name
        as_payload = head + content + b"}"
        assert is_taken(as_payload) == is_described_json(as_payload), name


@pytest.mark.skipif(not DATA.exists(), reason="the naughty strings are not beside the repository")
def test_naughty_strings_are_taken_or_refused_by_both() -> None:
    for text in naughty_strings():
        for changed in (
            event(("post.deleted", 1)) | {"type": text},
            event(("user.erased", 1)) | {"actor_id": text},
            event(("post.deleted", 1)) | {"occurred_at": text},
            event(("post.created", 1)) | {"payload": {"post_id": POST, "content": text}},
        ):
            assert is_taken(orjson.dumps(changed)) == is_described(changed), text
