"""`manage.py import_posts`: every line of the file an event in Kafka, or the line that is wrong and none at all."""

import gzip
import re
from collections.abc import Callable
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from pytest_django import Settings

from eventbus import envelope, kafka, producer
from posts.events import PostCreated
from tests.eventbus import broker

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["eventbus", "posts"])


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch) -> str:
    """Have this test's events published to an empty topic of its own."""
    topic = broker.create_topic(partitions=3)
    monkeypatch.setattr(kafka, "FEED_EVENTS", topic)
    return topic


def published(topic: str) -> list[PostCreated]:
    return [PostCreated.from_event(envelope.decode(r.value, r.key)) for r in broker.read_all(topic)]


def publish(directory: Path, text: str | bytes, name: str = "posts.csv") -> str:
    """Run the command on a file of this content and return what it printed."""
    content = text.encode() if isinstance(text, str) else text
    file = directory / name
    file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    out = StringIO()
    call_command("import_posts", str(file), stdout=out)
    return out.getvalue().strip()


@pytest.mark.parametrize("name", ["posts.csv", "posts.csv.gz"])
def test_each_line_becomes_a_post_of_its_author(topic: str, tmp_path: Path, name: str) -> None:
    publish(tmp_path, 'author,text\n1,hello\n2,"  one, two\nthree 世界  "\n9223372036854775807,🌍\n', name)
    contents = {post.author_id: post.content for post in published(topic)}
    assert contents == {1: "hello", 2: "one, two\nthree 世界", 2**63 - 1: "🌍"}


def test_the_count_and_the_rate_are_printed(topic: str, tmp_path: Path) -> None:
    printed = publish(tmp_path, "author,text\n" + "5,text\n" * 1_234)
    assert re.fullmatch(r"1234 posts published in \d+\.\d s \([\d,]+/s\)", printed)


def test_an_author_posts_in_the_order_of_the_file_under_rising_ids(topic: str, tmp_path: Path) -> None:
    publish(tmp_path, "author,text\n" + "".join(f"{n % 7 + 1},{n}\n" for n in range(700)))
    posts = published(topic)
    assert len({post.post_id for post in posts} | {post.event_id for post in posts}) == 2 * 700
    for author in range(1, 8):
        mine = [post for post in posts if post.author_id == author]
        assert [int(post.content) for post in mine] == list(range(author - 1, 700, 7))
        assert [post.post_id for post in mine] == sorted(post.post_id for post in mine)


def test_more_posts_than_the_producer_holds_at_once_are_all_published(
    topic: str, tmp_path: Path, settings: Settings
) -> None:
    settings.KAFKA_QUEUE_MAX_MESSAGES = 100
    producer.close()
    publish(tmp_path, "author,text\n" + "".join(f"{n},text\n" for n in range(1, 2_001)))
    assert {post.author_id for post in published(topic)} == set(range(1, 2_001))


def test_a_post_has_the_time_the_file_gives_it_or_that_of_its_id(topic: str, tmp_path: Path) -> None:
    publish(tmp_path, "author,t_unix,channel,text\n1,1234567890,#ubuntu,old\n2,,#ubuntu,new\n")
    posts = {post.content: post for post in published(topic)}
    assert posts["old"].created_at == datetime(2009, 2, 13, 23, 31, 30, tzinfo=UTC)
    assert posts["new"].created_at > datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("author,text\n1,ok\nx,bad\n", "line 3: author must be"),
        ("author,text\n1,ok\n0,bad\n", "line 3: author must be"),
        ("author,text\n1,ok\n9223372036854775808,bad\n", "line 3: author must be"),
        ('author,text\n1,"two\nlines"\n1,\n', "line 4: text must have 1 to 5000 characters and no NUL"),
        ("author,text\n1,ok\n1\n", "line 3: text must have"),
        ("author,text\n1,ok\n1,   \n", "line 3: text must have"),
        (f"author,text\n1,ok\n1,{'x' * 5_001}\n", "line 3: text must have"),
        ("author,text\n1,ok\n1,a\0b\n", "line 3: text must have"),
        ("author,text,t_unix\n1,ok,1\n1,bad,yesterday\n", "line 3: could not convert"),
        ("author,text,t_unix\n1,ok,1\n1,bad,1e300\n", "line 3: "),
        ("author,text,t_unix\n1,ok,1\n1,bad,nan\n", "line 3: "),
        ("who,what\n1,ok\n", "line 1: the header lacks author and text"),
        ("", "line 1: the header lacks author and text"),
        (b"author,text\n1,ok\n1,\xff\n", "codec can't decode byte 0xff"),
        (f"author,text\n1,ok\n1,{'x' * 200_000}\n", "field larger than field limit"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_published(
    topic: str, tmp_path: Path, text: str | bytes, complaint: str
) -> None:
    with pytest.raises(CommandError) as failure:
        publish(tmp_path, text)
    assert complaint in str(failure.value)
    assert "Nothing was published." in str(failure.value)
    assert published(topic) == []


@pytest.mark.parametrize("damage", [lambda packed: packed[:-20], lambda packed: packed[:100] + bytes(50)])
def test_a_damaged_archive_is_one_sentence_and_nothing_is_published(
    topic: str, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    packed = gzip.compress(b"author,text\n" + b"".join(b"%d,post %d\n" % (n, n * n) for n in range(1, 5_000)))
    file = tmp_path / "posts.csv.gz"
    file.write_bytes(damage(packed))
    with pytest.raises(CommandError, match=r"Nothing was published\."):
        call_command("import_posts", str(file))
    assert published(topic) == []


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"Cannot read .*: No such file"):
        call_command("import_posts", str(tmp_path / "none.csv"))


def test_posts_that_kafka_does_not_acknowledge_are_counted_and_said(
    topic: str, tmp_path: Path, settings: Settings
) -> None:
    settings.KAFKA_BOOTSTRAP_SERVERS, settings.KAFKA_PUBLISH_TIMEOUT_MS = "127.0.0.1:1", 300
    producer.close()
    with pytest.raises(CommandError, match="2 posts were not acknowledged by Kafka: "):
        publish(tmp_path, "author,text\n1,a\n2,b\n")
