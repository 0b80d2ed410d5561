"""The envelope: what goes in comes out, and whatever else is refused as poison, never with another
error.
"""

import json
import tarfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from hypothesis import given
from hypothesis import strategies as st

from eventbus import envelope
from eventbus.event import Event
from eventbus.exceptions import InvalidEvent, PoisonEvent, UndecodableEvent
from eventbus.ids.snowflake import MAX_ID
from tests.eventbus.events import LATEST_ID, NOON, TYPE, an_event

JSON_TEST_SUITE = Path(settings.BASE_DIR).parent / "shared/data/json_test_suite.tar.gz"
MISSING = object()

ids = st.integers(1, MAX_ID)
text = st.text(st.characters(exclude_categories=["Cs"]))
types = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=64
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
)
json_values = st.recursive(
    scalars | text, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=10
)
milliseconds = st.integers(0, 253_402_300_799_999)  # up to the end of the year 9999
moments = milliseconds.map(lambda ms: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms))
events = st.builds(
    Event,
    event_id=st.integers(1, LATEST_ID),
    type=types,
    version=st.integers(1, 2**63),
    actor_id=ids,
    occurred_at=moments,
    key=ids,
    payload=st.dictionaries(text, json_values),
)


def envelope_with(**changes: Any) -> bytes:
    """Return a good envelope with some fields changed or, where `MISSING`, left out."""
    fields = json.loads(envelope.encode(an_event())) | changes
    return json.dumps(
        {name: value for name, value in fields.items() if value is not MISSING}
    ).encode()


def test_the_envelope_is_json_with_ids_as_strings_and_utc_milliseconds() -> None:
    event = an_event(2**57, key=77, content="näive 👍")
    assert json.loads(envelope.encode(event)) == {
        "event_id": "144115188075855872",
        "type": TYPE,
        "version": 1,
        "actor_id": "77",
        "occurred_at": "2026-01-02T12:00:00.345Z",
        "payload": {"content": "näive 👍"},
    }
    assert envelope.encode_key(event.key) == b"77"


@given(events)
def test_what_is_encoded_decodes_to_the_same_event(event: Event) -> None:
    assert envelope.decode(envelope.encode(event), envelope.encode_key(event.key)) == event


def test_a_megabyte_of_payload_survives() -> None:
    event = an_event(content="x" * 1_000_000)
    assert envelope.decode(envelope.encode(event), b"1") == event


def test_times_of_any_zone_are_read_as_utc() -> None:
    value = envelope_with(occurred_at="2026-01-02T17:30:00.345+05:30")
    assert envelope.decode(value, b"1").occurred_at == NOON
    assert (
        envelope.format_time(NOON.astimezone(timezone(timedelta(hours=-8))))
        == "2026-01-02T12:00:00.345Z"
    )


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-02t12:00:00.345z",
        "2026-01-02T12:00:00.345-00:00",
        "2026-01-02T12:00:00.345000999+00:00",
    ],
)
def test_times_may_be_written_in_every_way_of_rfc_3339(text: str) -> None:
    assert envelope.decode(envelope_with(occurred_at=text), b"1").occurred_at == NOON


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(None, id="a tombstone"),
        pytest.param(b"", id="empty"),
        pytest.param(b"post.created", id="not JSON"),
        pytest.param(b'{"event_id": "1",}', id="almost JSON"),
        pytest.param(b"[]", id="an array"),
        pytest.param(b"null", id="null"),
        pytest.param(b"\x00\x00\x00\x00\x2a\x0e", id="Avro"),
        pytest.param(b"\xef\xbb\xbf{}", id="a byte order mark"),
        pytest.param('{"type": "é"}'.encode("latin-1"), id="not UTF-8"),
        pytest.param('{"type": "é"}'.encode("utf-16"), id="UTF-16"),
        pytest.param(envelope_with(payload={"content": "\ud800"}), id="a lone surrogate"),
        pytest.param(envelope_with(type="\udc00\ud800"), id="surrogates the wrong way round"),
        pytest.param(b'{"payload": NaN}', id="NaN"),
        pytest.param(b"[" * 1_000_000, id="a megabyte of nesting"),
        pytest.param(b'{"a":' * 5_000 + b"1" + b"}" * 5_000, id="nested objects"),
        pytest.param(b"x" * 1_000_000, id="a megabyte of noise"),
    ],
)
def test_bytes_that_are_no_json_object_are_undecodable(value: bytes | None) -> None:
    with pytest.raises(UndecodableEvent):
        envelope.decode(value, b"1")


NOT_AN_ID = [
    MISSING,
    None,
    "",
    "0",
    "-1",
    "+1",
    "01",
    " 1",
    "1 ",
    "1_000",
    "1.0",
    "1e3",
    "0x1",
    "١",
    "²",
    "1\0",
]
NOT_AN_ID += [str(2**63), "9" * 4_301, 1, 1.0, True, ["1"], {"id": "1"}]
NOT_A_TYPE = [
    MISSING,
    None,
    "",
    1,
    True,
    ["post.created"],
    "post\0created",
    "x" * 65,
    "x" * 1_000_000,
]
NOT_A_VERSION = [MISSING, None, True, False, 0, -1, 1.0, "1", [1], 2**64]
NOT_A_TIME = [
    MISSING,
    None,
    "",
    0,
    True,
    [],
    "now",
    "2026-01-02",
    "2026-01-02T12:00:00",
    "2026-02-30T12:00:00Z",
]
NOT_A_TIME += ["2026-01-02T12:00:00.345", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"]
NOT_A_TIME += [
    "2026-W01-1T12:00:00Z",
    "20260102T120000Z",
    "2026-01-02T12Z",
    "2026-01-02T12:00Z",
    "2026-01-02 12:00:00Z",
]
NOT_A_TIME += [
    "2026-01-02T12:00:00,345Z",
    "2026-01-02T12:00:00+0100",
    "2026-01-02T12:00:00+01",
    "2026-01-02T24:00:00Z",
]
NOT_A_TIME += [
    "2026-01-02T12:00:00+01:00:30",
    "٢٠٢٦-01-02T12:00:00Z",
    "2026-01-02T12:00:00.Z",
    "2026-01-02T12:00:00Z\n",
]
NOT_A_PAYLOAD = [MISSING, None, "{}", 1, True, [], [{}]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("event_id", value) for value in NOT_AN_ID),
        *(("actor_id", value) for value in NOT_AN_ID),
        *(("type", value) for value in NOT_A_TYPE),
        *(("version", value) for value in NOT_A_VERSION),
        *(("occurred_at", value) for value in NOT_A_TIME),
        *(("payload", value) for value in NOT_A_PAYLOAD),
    ],
    ids=lambda value: "missing" if value is MISSING else str(value)[:20].replace("\0", "NUL"),
)
def test_a_wrong_field_is_invalid_and_named(name: str, value: Any) -> None:
    with pytest.raises(InvalidEvent, match=f"^{name} must be"):
        envelope.decode(envelope_with(**{name: value}), b"1")


@pytest.mark.parametrize(
    "key", [None, b"", b"0", b"01", b"-1", b"one", b"\xff", b"1\0", b"9223372036854775808"]
)
def test_a_wrong_key_is_invalid(key: bytes | None) -> None:
    with pytest.raises(InvalidEvent, match=r"^key must be"):
        envelope.decode(envelope_with(), key)


@given(
    st.binary() | json_values.map(lambda value: json.dumps(value).encode()), st.none() | st.binary()
)
def test_no_bytes_at_all_raise_anything_but_poison(value: bytes, key: bytes | None) -> None:
    with pytest.raises(PoisonEvent):
        envelope.decode(value, key)


@pytest.mark.skipif(not JSON_TEST_SUITE.exists(), reason=f"{JSON_TEST_SUITE} is not there")
def test_no_file_of_the_json_test_suite_raises_anything_but_poison() -> None:
    refused = {}
    with tarfile.open(JSON_TEST_SUITE) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None and member.name.endswith(".json"):
                with pytest.raises(PoisonEvent) as caught:
                    envelope.decode(file.read(), b"1")
                refused[Path(member.name).name] = caught.type
    assert len(refused) == 318
    assert {kind for name, kind in refused.items() if name.startswith("n_")} == {UndecodableEvent}


@pytest.mark.parametrize(
    "event",
    [
        an_event(0),
        an_event(2**63),
        an_event(key=0),
        an_event(content="\ud800"),
        an_event(content=2**64),
        an_event(content=object()),
        an_event(content={1: "a number as a name"}),
        replace(an_event(), occurred_at=NOON.replace(tzinfo=None)),
        replace(an_event(), occurred_at=datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))),
    ],
)
def test_what_decode_would_refuse_is_not_encoded(event: Event) -> None:
    with pytest.raises(InvalidEvent):
        envelope.encode(event)
