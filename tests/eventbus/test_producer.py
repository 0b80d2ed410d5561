"""Publishing: a call that returns has made the record durable, one that raises tells how it
failed.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka import KafkaError
from pytest_django import Settings

from eventbus import envelope, kafka, producer
from eventbus.breaker import KAFKA
from eventbus.exceptions import InvalidEvent, ProducerQueueFull, PublishTimedOut, RecordTooLarge
from eventbus.producer import EventProducer
from eventbus.record import Record
from tests.eventbus import broker
from tests.eventbus.conftest import StartScript, output_of
from tests.eventbus.events import TYPE, an_event, counted

PUBLISH_BEFORE_AND_AFTER_A_FORK = """
import os, sys
from eventbus import producer

topic = sys.argv[1]
producer.publish_record(topic, b"1", b"parent, before the fork")
child = os.fork()
producer.publish_record(topic, b"1", b"parent" if child else b"child")
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def murmur2(key: bytes) -> int:
    """Return the hash by which Kafka's Java clients choose a partition, as a signed 32-bit number.

    After `org.apache.kafka.common.utils.Utils.murmur2`.
    """
    mask, factor = 0xFFFFFFFF, 0x5BD1E995
    hashed = 0x9747B28C ^ len(key)
    whole = len(key) // 4 * 4
    for start in range(0, whole, 4):
        word = int.from_bytes(key[start : start + 4], "little") * factor & mask
        word = (word ^ word >> 24) * factor & mask
        hashed = hashed * factor & mask ^ word
    if rest := key[whole:]:
        hashed = (hashed ^ int.from_bytes(rest, "little")) * factor & mask
    hashed = (hashed ^ hashed >> 13) * factor & mask
    hashed ^= hashed >> 15
    return hashed - (1 << 32 if hashed >> 31 else 0)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_this_murmur2_gives_the_values_of_kafkas_own_tests(key: bytes, expected: int) -> None:
    assert murmur2(key) == expected


def published(topic: str) -> list[bytes | None]:
    return [record.value for record in broker.read_all(topic)]


def result(outcome: str) -> float:
    return counted("events_published_total", type=TYPE, result=outcome)


def test_a_published_event_is_in_kafka_when_the_call_returns(feed_events: str) -> None:
    before = result("ok")
    event = an_event(41, key=7, content="hello")
    producer.publish(event, [("traceparent", b"00-1-2-01")])
    [record] = broker.read_all(feed_events)
    assert envelope.decode(record.value, record.key) == event
    assert record.key == b"7"
    assert list(record.headers) == [("traceparent", b"00-1-2-01")]
    assert result("ok") == before + 1


def test_an_event_goes_where_a_java_client_would_put_its_key(feed_events: str) -> None:
    keys = [1, 2, 3, 10, 255, 4_711, 2**31, 2**53, 2**63 - 1]
    for event_id, key in enumerate(keys * 2, start=1):
        producer.publish(an_event(event_id, key))
    records = broker.read_all(feed_events)
    assert len(records) == 2 * len(keys)
    assert all(
        record.partition == (murmur2(record.key or b"") & 0x7FFFFFFF) % 6 for record in records
    )
    assert len({record.partition for record in records}) > 1


def test_events_of_a_key_keep_the_order_they_were_published_in(feed_events: str) -> None:
    for event_id in range(1, 51):
        producer.publish(an_event(event_id))
    ids = [
        envelope.decode(record.value, record.key).event_id
        for record in broker.read_all(feed_events)
    ]
    assert ids == list(range(1, 51))


def test_each_of_many_threads_gets_the_report_of_its_own_record(feed_events: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: producer.publish(an_event(n, key=n)), range(1, 201)))
    records = broker.read_all(feed_events)
    assert sorted(envelope.decode(record.value, record.key).event_id for record in records) == list(
        range(1, 201)
    )


def test_several_events_are_all_in_kafka_when_the_call_returns(feed_events: str) -> None:
    before = result("ok")
    events = [an_event(number, key=number) for number in range(1, 101)]
    producer.publish_all(events, [("traceparent", b"00-1-2-01")])
    records = broker.read_all(feed_events)
    stored = {record.key: envelope.decode(record.value, record.key) for record in records}
    assert stored == {b"%d" % event.key: event for event in events}
    assert all(list(record.headers) == [("traceparent", b"00-1-2-01")] for record in records)
    assert result("ok") == before + 100


def test_an_event_that_no_consumer_could_read_is_not_published(feed_events: str) -> None:
    with pytest.raises(InvalidEvent):
        producer.publish(an_event(event_id=0))
    with pytest.raises(InvalidEvent):
        producer.publish_all([an_event(event_id=1), an_event(event_id=0)])
    assert broker.read_all(feed_events) == []


def test_raw_records_may_lack_key_value_and_header_values() -> None:
    topic = broker.create_topic()
    producer.publish_record(topic, None, None, [("empty", b""), ("none", None)])
    [record] = broker.read_all(topic)
    assert record == Record(
        topic, 0, 0, None, None, [("empty", b""), ("none", None)], record.timestamp_ms
    )


def test_a_record_too_big_for_kafka_is_refused_at_once() -> None:
    with pytest.raises(RecordTooLarge, match="too large") as caught:
        producer.publish_record(
            broker.create_topic(), b"1", b"x" * (kafka.MAX_DEAD_LETTER_BYTES + 1)
        )
    assert caught.value.result == "too_large"


@pytest.mark.usefixtures("own_producer")
def test_without_a_broker_publishing_times_out_and_is_counted(settings: Settings) -> None:
    settings.KAFKA_BOOTSTRAP_SERVERS = "127.0.0.1:1"
    settings.KAFKA_PUBLISH_TIMEOUT_MS = 100
    before = result("timed_out")
    with pytest.raises(PublishTimedOut):
        producer.publish(an_event())
    assert result("timed_out") == before + 1
    with pytest.raises(PublishTimedOut):
        producer.publish_all([an_event(number) for number in range(1, 11)])
    assert result("timed_out") == before + 11


@pytest.mark.usefixtures("own_producer")
def test_several_events_wait_together_for_room_in_the_queue(settings: Settings) -> None:
    settings.KAFKA_BOOTSTRAP_SERVERS = "127.0.0.1:1"
    settings.KAFKA_QUEUE_MAX_MESSAGES = 2
    settings.KAFKA_PUBLISH_TIMEOUT_MS = 2_000
    producer.get()
    settings.KAFKA_PUBLISH_TIMEOUT_MS = 100
    with pytest.raises(ProducerQueueFull):
        producer.publish_all([an_event(number) for number in range(1, 11)])
    KAFKA.succeeded()


def test_a_full_queue_is_an_answer_not_an_endless_wait(settings: Settings) -> None:
    settings.KAFKA_BOOTSTRAP_SERVERS = "127.0.0.1:1"
    settings.KAFKA_QUEUE_MAX_MESSAGES = 1
    settings.KAFKA_PUBLISH_TIMEOUT_MS = 500
    full = EventProducer()
    reports: list[KafkaError | None] = []
    full.send("notes", b"1", b"first", [], reports.append)

    settings.KAFKA_PUBLISH_TIMEOUT_MS = 50
    with pytest.raises(ProducerQueueFull):
        full.send("notes", b"1", b"second", [], reports.append)

    full.close()
    assert [error.code() for error in reports if error] == [KafkaError._MSG_TIMED_OUT]


def test_room_in_the_queue_is_waited_for(settings: Settings) -> None:
    settings.KAFKA_QUEUE_MAX_MESSAGES = 1
    topic, narrow = broker.create_topic(), EventProducer()
    reports: list[KafkaError | None] = []
    for number in range(5):
        narrow.send(topic, b"1", b"%d" % number, [], reports.append)
    narrow.close()
    assert reports == [None] * 5
    assert published(topic) == [b"%d" % number for number in range(5)]


@pytest.mark.usefixtures("own_producer")
def test_closing_delivers_what_is_queued() -> None:
    topic = broker.create_topic()
    for number in range(100):
        producer.get().send(topic, b"1", b"%d" % number, [], lambda _error: None)
    producer.close()
    assert published(topic) == [b"%d" % number for number in range(100)]


def test_a_forked_child_publishes_with_a_producer_of_its_own(start_script: StartScript) -> None:
    topic = broker.create_topic()
    output_of(start_script(PUBLISH_BEFORE_AND_AFTER_A_FORK, topic))
    first, *others = published(topic)
    assert first == b"parent, before the fork"
    assert set(others) == {b"parent", b"child"}
    assert len(others) == 2
