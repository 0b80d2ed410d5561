"""Post events: what is published is what is consumed, and what breaks the schema is refused."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus import envelope, kafka
from eventbus.event import Event
from eventbus.exceptions import InvalidEvent
from eventbus.ids import clock
from eventbus.ids.snowflake import EPOCH_MS, MAX_ID, compose
from posts.data import MAX_BYTES, text_of
from posts.events import MAX_CONTENT_CHARS, PostCreated, PostDeleted
from tests.eventbus.events import LATEST_ID
from tests.factories import PostCreatedFactory, PostDeletedFactory
from tests.posts.test_data import objects

ids = st.integers(1, MAX_ID)
minted_ids = st.integers(1, LATEST_ID)
texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=200
)
moments = st.integers(0, 10**11).map(
    lambda ms: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms * 10)
)


def consumed(event: Event) -> Event:
    """Return what a consumer decodes from the record of `event`."""
    return envelope.decode(envelope.encode(event), envelope.encode_key(event.key))


@given(minted_ids, minted_ids, ids, texts, moments)
def test_a_created_post_survives_the_journey_through_kafka(
    event_id: int, post_id: int, author_id: int, content: str, created_at: datetime
) -> None:
    post = PostCreated(event_id, post_id, author_id, content, created_at)
    assert PostCreated.from_event(consumed(post.to_event())) == post


@given(minted_ids, ids, st.just("") | texts, objects)
def test_a_post_with_data_survives_it_too(
    post_id: int, author_id: int, content: str, data: dict[str, Any]
) -> None:
    post = PostCreatedFactory(
        post_id=post_id, author_id=author_id, content=content, data=text_of(data)
    )
    assert post.to_event().version == 2
    assert PostCreated.from_event(consumed(post.to_event())) == post


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        ({}, "data must be a JSON object"),
        ({"data": None}, "data must be a JSON object"),
        ({"data": "{}"}, "data must be a JSON object"),
        ({"data": {"a": "\0"}}, "NUL"),
        ({"data": {"a": 2**53}}, "A number in data"),
        ({"data": {"a": "x" * MAX_BYTES}}, "must not exceed"),
        ({"data": {}, "content": None}, "content must be a string of 0"),
        ({"data": {}, "content": "x" * (MAX_CONTENT_CHARS + 1)}, "content must be"),
    ],
)
def test_data_that_could_not_be_stored_is_refused(payload: dict[str, Any], complaint: str) -> None:
    event = PostCreatedFactory(data="{}").to_event()
    broken = replace(event, payload={"post_id": "1", "content": "x"} | payload)
    with pytest.raises(InvalidEvent, match=complaint):
        PostCreated.from_event(broken)


def test_the_largest_post_fits_a_record_many_times() -> None:
    escaped = "\x01" * MAX_CONTENT_CHARS  # six bytes each
    data = text_of({"x": "y" * (MAX_BYTES - 8)})
    event = PostCreatedFactory(content=escaped, data=data).to_event()
    assert len(envelope.encode(event)) < kafka.MAX_MESSAGE_BYTES / 40


@given(minted_ids, minted_ids, ids)
def test_a_deletion_survives_the_journey_through_kafka(
    event_id: int, post_id: int, author_id: int
) -> None:
    deletion = PostDeleted(event_id, post_id, author_id)
    assert PostDeleted.from_event(consumed(deletion.to_event())) == deletion


def test_ids_travel_as_strings_under_the_key_of_the_author() -> None:
    created = PostCreatedFactory(author_id=MAX_ID, post_id=MAX_ID - 1, content="hello")
    event = created.to_event()
    assert (event.type, event.version) == ("post.created", 1)
    assert event.key == event.actor_id == MAX_ID
    assert event.payload == {"post_id": str(MAX_ID - 1), "content": "hello"}
    deleted = PostDeletedFactory(author_id=MAX_ID, post_id=MAX_ID - 1).to_event()
    assert (deleted.type, deleted.version, deleted.key) == ("post.deleted", 1, MAX_ID)
    assert deleted.payload == {"post_id": str(MAX_ID - 1)}


def test_a_deletion_knows_when_the_post_was_created() -> None:
    deletion = PostDeletedFactory(post_id=compose(EPOCH_MS + 1_234, node_id=7, sequence=9))
    assert deletion.post_created_at == datetime(2024, 1, 1, 0, 0, 1, 234_000, tzinfo=UTC)


@pytest.mark.parametrize("content", ["x", "x" * MAX_CONTENT_CHARS, "🌍" * MAX_CONTENT_CHARS])
def test_content_of_1_to_5000_characters_is_taken(content: str) -> None:
    event = PostCreatedFactory(content=content).to_event()
    assert PostCreated.from_event(consumed(event)).content == content


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        ({"post_id": "1"}, "content must be"),
        ({"post_id": "1", "content": ""}, "content must be"),
        ({"post_id": "1", "content": 5}, "content must be"),
        ({"post_id": "1", "content": "a\0b"}, "content must be"),
        ({"post_id": "1", "content": "x" * (MAX_CONTENT_CHARS + 1)}, "content must be"),
        ({"content": "x"}, "post_id must be"),
        ({"post_id": 1, "content": "x"}, "post_id must be"),
        ({"post_id": "0", "content": "x"}, "post_id must be"),
        ({"post_id": "01", "content": "x"}, "post_id must be"),
        ({"post_id": str(MAX_ID + 1), "content": "x"}, "post_id must be"),
    ],
)
def test_a_payload_that_breaks_the_schema_is_refused(
    payload: dict[str, Any], complaint: str
) -> None:
    event = replace(PostCreatedFactory().to_event(), payload=payload)
    with pytest.raises(InvalidEvent, match=complaint):
        PostCreated.from_event(event)


@pytest.mark.parametrize("fact", [PostCreatedFactory(), PostDeletedFactory()])
def test_a_post_from_after_tomorrow_is_refused(fact: PostCreated | PostDeleted) -> None:
    in_two_days = compose(clock.now_ms() + 48 * 3_600_000, node_id=1, sequence=1)
    event = replace(fact, post_id=in_two_days).to_event()
    with pytest.raises(InvalidEvent, match=r"post_id is an id from 4[78] hours in the future"):
        type(fact).from_event(event)


@pytest.mark.parametrize("fact", [PostCreatedFactory(author_id=1), PostDeletedFactory(author_id=1)])
def test_an_event_under_someone_elses_key_is_refused(fact: PostCreated | PostDeleted) -> None:
    event = replace(fact.to_event(), key=2)
    with pytest.raises(InvalidEvent, match="The key must be the author"):
        type(fact).from_event(event)
