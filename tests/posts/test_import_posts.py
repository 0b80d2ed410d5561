"""`manage.py import_posts`: every line of the file an event in Kafka, or the line that is wrong and
none at all.
"""

import csv
import gzip
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from pytest_django import Settings

from eventbus import envelope, kafka, producer
from eventbus.ids import id_ranges, node_lease
from eventbus.ids.snowflake import milliseconds_of
from eventbus.models import SnowflakeNode
from posts.events import PostCreated
from posts.imports import Draft
from tests.e2e.system import environment
from tests.eventbus import broker
from tests.eventbus.events import eventually

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["eventbus", "posts"])


# `import_posts FILE` in a process of its own, to a topic of the test's own.
TO_TOPIC = """
import os, sys, django
os.environ["DJANGO_SETTINGS_MODULE"] = "feedsite.settings"
django.setup()
from django.core.management import call_command
from eventbus import kafka
kafka.FEED_EVENTS = sys.argv[1]
call_command("import_posts", sys.argv[2])
"""


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch) -> str:
    """Have this test's events published to an empty topic of its own."""
    topic = broker.create_topic(partitions=3)
    monkeypatch.setattr(kafka, "FEED_EVENTS", topic)
    return topic


def published(topic: str) -> list[PostCreated]:
    return [PostCreated.from_event(envelope.decode(r.value, r.key)) for r in broker.read_all(topic)]


def publish(
    directory: Path, text: str | bytes, name: str = "posts.csv", options: Sequence[str] = ()
) -> str:
    """Run the command on a file of this content and return what it printed."""
    content = text.encode() if isinstance(text, str) else text
    file = directory / name
    file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    out = StringIO()
    call_command("import_posts", str(file), *options, stdout=out)
    return out.getvalue().strip()


@pytest.mark.parametrize("name", ["posts.csv", "posts.csv.gz"])
def test_each_line_becomes_a_post_of_its_author(topic: str, tmp_path: Path, name: str) -> None:
    publish(
        tmp_path,
        'author,text\n1,hello\n2,"  one, two\nthree 世界  "\n9223372036854775807,🌍\n',
        name,
    )
    contents = {post.author_id: post.content for post in published(topic)}
    assert contents == {1: "hello", 2: "one, two\nthree 世界", 2**63 - 1: "🌍"}


def test_the_count_and_the_rate_are_printed(topic: str, tmp_path: Path) -> None:
    printed = publish(tmp_path, "author,text\n" + "5,text\n" * 1_234)
    assert re.fullmatch(r"1234 posts published in \d+\.\d s \([\d,]+/s\)", printed)


def test_an_author_posts_in_the_order_of_the_file_under_rising_ids(
    topic: str, tmp_path: Path
) -> None:
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


def test_a_post_has_the_time_the_file_gives_it_or_that_of_its_id(
    topic: str, tmp_path: Path
) -> None:
    publish(tmp_path, "author,t_unix,channel,text\n1,1234567890,#ubuntu,old\n2,,#ubuntu,new\n")
    posts = {post.content: post for post in published(topic)}
    assert posts["old"].created_at == datetime(2009, 2, 13, 23, 31, 30, tzinfo=UTC)
    assert posts["new"].created_at > datetime(2024, 1, 1, tzinfo=UTC)


def test_a_post_has_the_data_that_the_file_gives_it(topic: str, tmp_path: Path) -> None:
    lines = [
        "author,text,data",
        '1,with,"{""a"": [1, 2.50], ""b"": {}}"',
        '2,,"{""only"": true}"',
        "3,without,",
    ]
    publish(tmp_path, "\n".join(lines) + "\n")
    posts = {post.author_id: (post.content, post.data) for post in published(topic)}
    assert posts == {
        1: ("with", '{"a":[1,2.5],"b":{}}'),
        2: ("", '{"only":true}'),
        3: ("without", None),
    }


def test_a_file_without_data_is_known_by_what_it_was_known_by_before_there_was_any() -> None:
    now = datetime(2009, 2, 13, tzinfo=UTC)
    old = "Draft(author_id=1, content='a\\nb', created_at=datetime.datetime(2009, 2, 13, 0, 0,"
    old += " tzinfo=datetime.timezone.utc))"
    assert Draft(1, "a\nb", now).fingerprint == old.encode()
    assert Draft(1, "a\nb", now, "{}").fingerprint != old.encode()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("author,text\n1,ok\nx,bad\n", "line 3: author must be"),
        ("author,text\n1,ok\n0,bad\n", "line 3: author must be"),
        ("author,text\n1,ok\n9223372036854775808,bad\n", "line 3: author must be"),
        (
            'author,text\n1,"two\nlines"\n1,\n',
            "line 4: text must have 1 to 5000 characters and no NUL",
        ),
        ("author,text\n1,ok\n1\n", "line 3: expected 2 columns, found 1"),
        ("author,text,t_unix\n1,ok,1\n1,the file was cu", "line 3: expected 3 columns, found 2"),
        ("author,text,data\n1,ok,\n1,bad,x\n", "line 3: data is not JSON"),
        ("author,text,data\n1,ok,{}\n1,bad,[]\n", "line 3: data must be a JSON object"),
        ('author,text,data\n1,bad,"{""a"":1,""a"":1}"\n', "line 2: An object in the body has"),
        ("author,text\n1,ok\n1,   \n", "line 3: text must have"),
        (f"author,text\n1,ok\n1,{'x' * 5_001}\n", "line 3: text must have"),
        ("author,text\n1,ok\n1,a\0b\n", "line 3: text must have"),
        (
            "author,text,t_unix\n1,ok,1\n1,bad,yesterday\n",
            "line 3: t_unix must be seconds since 1970",
        ),
        (
            "author,text,t_unix\n1,ok,1\n1,bad,1_700_000_000\n",
            "line 3: t_unix must be seconds since 1970",
        ),
        (
            "author,text,t_unix\n1,ok,1\n1,Hello, 2024\n",
            "line 3: t_unix must be seconds since 1970",
        ),
        (
            "author,text,t_unix\n1,ok,1\n1,bad,\u0661\u0662\n",
            "line 3: t_unix must be seconds since 1970",
        ),
        ("author,text,t_unix\n1,ok,1\n1,bad,+5\n", "line 3: t_unix must be seconds since 1970"),
        (
            "author,text,t_unix\n1,ok,1\n1,bad,999999999999\n",
            "line 3: t_unix must be seconds since 1970",
        ),
        ("author,text\n1,ok\n403,Hello, world\n", "line 3: expected 2 columns, found 3"),
        ("author,text,t_unix\n1,ok,1\n1,Hello, world,1\n", "line 3: expected 3 columns, found 4"),
        (
            'author,text\n1,ok\n1,"not closed\n1,ok\n',
            "line 3: a quote is opened here and never closed",
        ),
        (
            'author,text\n1,ok\n1,"not closed\n1,"ok"\n',
            "line 3: a quote is opened here, and what closes it",
        ),
        (
            "author,text\n1,ok\n+1,bad\n",
            "line 3: author must be a decimal string of 1 to 2^63-1, not '+1'",
        ),
        ("author,text\n1,ok\n1_0,bad\n", "line 3: author must be"),
        ("author,text\n1,ok\n\u0661,bad\n", "line 3: author must be"),
        ("author,text\n1,ok\n 1,bad\n", "line 3: author must be"),
        ("author,text,text\n1,ok,ok\n", "line 1: the header has 'text' twice"),
        ("author,text,t_unix\n1,ok,1\n1,bad,1e300\n", "line 3: "),
        ("author,text,t_unix\n1,ok,1\n1,bad,nan\n", "line 3: "),
        ("who,what\n1,ok\n", "line 1: the header lacks author and text"),
        ("", "line 1: the header lacks author and text"),
        (b"author,text\n1,ok\n1,\xff\n", "line 3: not UTF-8"),
        (f"author,text\n1,ok\n1,{'x' * 200_000}\n", "line 3: field larger than field limit"),
        (
            'author,text\n1,ok\n1,"not closed\n' + "1,ok\n" * 50_000,
            "line 3: field larger than field limit (131072): is a quote opened here and never closed?",
        ),
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


@pytest.mark.parametrize(
    "damage", [lambda packed: packed[:-20], lambda packed: packed[:100] + bytes(50)]
)
def test_a_damaged_archive_is_one_sentence_and_nothing_is_published(
    topic: str, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    packed = gzip.compress(
        b"author,text\n" + b"".join(b"%d,post %d\n" % (n, n * n) for n in range(1, 5_000))
    )
    file = tmp_path / "posts.csv.gz"
    file.write_bytes(damage(packed))
    with pytest.raises(CommandError, match=r"Nothing was published\."):
        call_command("import_posts", str(file))
    assert published(topic) == []


def test_a_byte_order_mark_is_taken(topic: str, tmp_path: Path) -> None:
    publish(tmp_path, "\ufeffauthor,text\r\n1,ok\r\n")
    assert [post.content for post in published(topic)] == ["ok"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_pipe_is_read_as_a_file_is(
    topic: str, tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    content = pack(
        b"author,text\n" + b"".join(b"%d,text\n" % author for author in range(1, 20_001))
    )
    command = [sys.executable, "-c", TO_TOPIC, topic, "/dev/stdin"]
    done = subprocess.run(
        command, input=content, env=environment(), capture_output=True, check=True
    )
    assert b"20000 posts published" in done.stdout
    assert len(published(topic)) == 20_000


def test_a_line_with_quotes_commas_and_line_ends_is_one_post(topic: str, tmp_path: Path) -> None:
    publish(tmp_path, 'author,text\n1,"a ""quoted"", word\nand a line"\n2,say "hello"\n')
    assert {post.content for post in published(topic)} == {
        'a "quoted", word\nand a line',
        'say "hello"',
    }


# Again --------------------------------------------------------------------------------------------


def test_the_same_file_again_makes_the_same_posts_and_as_new_makes_others(
    topic: str, tmp_path: Path
) -> None:
    text = "author,text\n" + "".join(f"{n},text\n" for n in range(1, 3_001))
    for options in ([], [], ["--as-new"]):
        publish(tmp_path, text, options=options)
    posts = published(topic)
    assert len(posts) == 9_000
    assert len({post.event_id for post in posts}) == len({post.post_id for post in posts}) == 6_000


def test_an_interrupted_import_can_be_run_again(topic: str, tmp_path: Path) -> None:
    file = tmp_path / "posts.csv"
    file.write_text("author,text\n" + "".join(f"{n},text\n" for n in range(1, 100_001)))
    command = [sys.executable, "-c", TO_TOPIC, topic, str(file)]
    importing = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    eventually(lambda: sum(broker.size_of(topic, partition) for partition in range(3)) > 0)
    importing.send_signal(signal.SIGINT)
    _out, told = importing.communicate(timeout=60)
    interrupted = re.search(
        r"Interrupted\. (\d+) posts were published\. Run the command again", told
    )
    assert interrupted, told
    assert len(published(topic)) == int(interrupted[1])

    call_command("import_posts", str(file), stdout=StringIO(), stderr=StringIO())
    assert len({post.post_id for post in published(topic)}) == 100_000


def test_ids_of_imports_and_of_others_are_never_the_same() -> None:
    ranges = [id_ranges.IdRange.lease(10_000) for _ in range(3)]
    ids = [one for ids in ranges for number in range(10_000) for one in ids.write(number)]
    others = [node_lease.next_id() for _ in range(1_000)]
    assert len({*ids, *others}) == 61_000
    for taken in ranges:
        mine = [taken.write(number) for number in range(10_000)]
        assert mine == sorted(mine)
        assert all(write.object_id < write.event_id for write in mine)
        node = SnowflakeNode.objects.get(node_id=taken.first >> 12 & 1_023)
        assert milliseconds_of(mine[-1].event_id) <= node.leased_until_ms


def test_it_is_said_when_the_file_is_not_in_the_order_of_time(
    topic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path, "author,text,t_unix\n1,a,1\n2,b,2\n3,c,\n")
    assert "order" not in capsys.readouterr().err
    publish(tmp_path, "author,text,t_unix\n1,a,2\n2,b,1\n")
    assert "the order of the file, which is not that of t_unix" in capsys.readouterr().err


# Bad lines aside ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["posts.csv", "posts.csv.gz"])
def test_bad_lines_are_set_aside_with_their_reasons_and_the_rest_is_published(
    topic: str, tmp_path: Path, name: str
) -> None:
    aside = tmp_path / "bad.csv"
    text = b'author,text\n1,a\nx,b\n2,c\n3,Hello, world\n4,\xff\n5,"d\n"e\n6,f\n7,"never\nclosed\n'
    printed = publish(tmp_path, text, name, options=["--skip-invalid", str(aside)])
    assert printed.startswith("3 posts published")
    assert printed.endswith(f"5 bad lines are in {aside}")
    assert {post.author_id for post in published(topic)} == {1, 2, 6}
    with aside.open(newline="", errors="surrogateescape") as file:
        rows = [
            (row["line"], row["content"].encode(errors="surrogateescape"))
            for row in csv.DictReader(file)
        ]
    assert rows == [
        ("3", b"x,b"),
        ("5", b"3,Hello, world"),
        ("6", b"4,\xff"),
        ("7", b'5,"d\n"e'),
        ("10", b'7,"never\nclosed'),
    ]


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
