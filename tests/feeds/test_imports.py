"""Loading graphs in bulk."""

import csv
import gzip
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from pytest_django import Settings

from eventbus import envelope, producer
from eventbus.database.sql import fetch
from eventbus.ids.snowflake import time_of
from feeds import imports, verification
from feeds.models import Feed, Follow
from tests.e2e.system import environment
from tests.eventbus.conftest import feed_events
from tests.eventbus.events import eventually
from tests.factories import PostCreatedFactory, UserFollowedFactory, UserUnfollowedFactory, apply
from tests.feeds.model import feed, history
from tests.feeds.test_replay_topic import contents, lose_everything
from tests.feeds.worker import Worker

__all__ = ["feed_events"]

pytestmark = pytest.mark.django_db(transaction=True)


def load(directory: Path, text: str, *options: str, name: str = "graph.csv") -> str:
    file = directory / name
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    out = StringIO()
    call_command("import_follows", str(file), *options, stdout=out)
    return out.getvalue().strip()


def load_from_pipe(directory: Path, content: bytes) -> str:
    pipe = directory / "pipe"
    os.mkfifo(pipe)
    writing = threading.Thread(target=pipe.write_bytes, args=(content,), daemon=True)
    writing.start()
    out = StringIO()
    call_command("import_follows", str(pipe), stdout=out)
    writing.join(10)
    return out.getvalue().strip()


def pairs() -> set[tuple[int, int]]:
    return set(Follow.objects.filter(active=True).values_list("follower_id", "followee_id"))


@pytest.mark.parametrize("name", ["graph.csv", "graph.csv.gz"])
def test_an_import_makes_each_pair_active_once(tmp_path: Path, name: str) -> None:
    text = "follower,followee\n2,1\n3,1\n2,1\n"
    assert load(tmp_path, text, name=name) == "3 follows read, 2 new"
    assert load(tmp_path, text, name=name) == "3 follows read, 0 new"
    assert pairs() == {(2, 1), (3, 1)}
    assert Feed.objects.get(user_id=1).follower_count == 2


def test_mutual_pairs_and_ids_from_zero(tmp_path: Path) -> None:
    load(tmp_path, "user_a,user_b\n0,1\n", "--mutual", "--id-offset", "1")
    assert pairs() == {(1, 2), (2, 1)}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "follower,followee\n2,1\n3,x\n",
            "line 3: a user id must be a decimal string of 1 to 2^63-1, not 'x'",
        ),
        ("follower,followee\n2,1\n3\n", "line 3: expected 2 columns, found 1"),
        ("follower,followee\n0,1\n", "line 2: a user id must be"),
        ("follower,followee\n9223372036854775808,1\n", "line 2: a user id must be"),
        ("follower,followee\n5,5\n", "line 2: user 5 cannot follow themselves"),
        ("a,b\n2,1\n", "line 1: the header must be follower,followee"),
        ("", "line 1"),
        ("follower,follower\n2,1\n", "line 1: the header has 'follower' twice"),
        ("follower,followee\n2,1,\n", "line 2: expected 2 columns, found 3"),
        ('follower,followee\n2,1\n"3,1\n4,1\n', "line 3: a quote is opened here and never closed"),
        (
            'follower,followee\n2,1\n"3,1\n"4",1\n',
            "line 3: a quote is opened here, and what closes it has text after",
        ),
        ("follower,followee\n2_01,1\n", "line 2: a user id must be a decimal string"),
        ("follower,followee\n+203,1\n", "line 2: a user id must be a decimal string"),
        ("follower,followee\n02,1\n", "line 2: a user id must be a decimal string"),
        ("follower,followee\n2, 1\n", "line 2: a user id must be a decimal string"),
        ("follower,followee\n\u0662,1\n", "line 2: a user id must be a decimal string"),
        ("follower,followee\n2,1\n\n" + "5" * 1_100_000, "line 4: longer than 1000000 characters"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_imported(
    tmp_path: Path, text: str, complaint: str
) -> None:
    with pytest.raises(CommandError) as failure:
        load(tmp_path, text)
    assert complaint in str(failure.value)
    assert "Nothing was imported." in str(failure.value)
    assert pairs() == set()


@pytest.mark.parametrize("id_", ["-1", "+0", "00", "1_0", "\u0660", "9223372036854775807", ""])
def test_ids_before_an_offset_follow_the_same_rule(tmp_path: Path, id_: str) -> None:
    with pytest.raises(CommandError, match="line 3: "):
        load(tmp_path, f"a,b\n0,1\n{id_},1\n", "--mutual", "--id-offset", "1")
    assert pairs() == set()


def test_a_byte_order_mark_is_taken_and_so_are_line_ends_of_any_system(tmp_path: Path) -> None:
    load(tmp_path, "\ufefffollower,followee\r\n2,1\r\n\r\n3,1")
    assert pairs() == {(2, 1), (3, 1)}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_pipe_is_read_as_a_file_is(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    text = b"follower,followee\n" + b"".join(b"%d,1\n" % user for user in range(2, 30_000))
    assert load_from_pipe(tmp_path, pack(text)) == "29998 follows read, 29998 new"


def test_an_interrupted_import_leaves_nothing_behind() -> None:
    command = [sys.executable, "manage.py", "import_follows", "/dev/stdin"]
    pipe = subprocess.PIPE
    importing = subprocess.Popen(command, env=environment(), stdin=pipe, stderr=pipe, text=True)
    assert importing.stdin is not None
    importing.stdin.write(
        "follower,followee\n" + "".join(f"{user},1\n" for user in range(2, 20_000))
    )
    importing.stdin.flush()
    eventually(
        lambda: (
            fetch("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'COPY staged_follows%%'", [])
            != []
        )
    )
    importing.send_signal(signal.SIGINT)
    _out, told = importing.communicate(timeout=60)
    assert importing.returncode == 1
    assert told == "CommandError: Interrupted. Nothing was imported.\n"
    assert pairs() == set()


# Bad lines aside ----------------------------------------------------------------------------------


def test_bad_lines_are_set_aside_with_their_reasons_and_the_rest_is_imported(
    tmp_path: Path,
) -> None:
    aside = tmp_path / "bad.csv"
    text = 'follower,followee\n2,1\nx,1\n3,1\n4,4\n5,1,9\n"6"7,1\n8,1\n'
    printed = load(tmp_path, text, "--skip-invalid", str(aside))
    assert printed == f"3 follows read, 3 new\n4 bad lines are in {aside}"
    assert pairs() == {(2, 1), (3, 1), (8, 1)}
    with aside.open(newline="") as file:
        assert [(row["line"], row["content"]) for row in csv.DictReader(file)] == [
            ("3", "x,1"),
            ("5", "4,4"),
            ("6", "5,1,9"),
            ("7", '"6"7,1'),
        ]
    assert "user 4 cannot follow themselves" in aside.read_text()


def test_a_wrong_header_cannot_be_set_aside_nor_can_the_file_be_overwritten(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="the header must be follower,followee"):
        load(tmp_path, "a,b\n2,1\n", "--skip-invalid", str(tmp_path / "bad.csv"))
    with pytest.raises(CommandError, match="would overwrite"):
        load(tmp_path, "follower,followee\n2,1\n", "--skip-invalid", str(tmp_path / "graph.csv"))
    with pytest.raises(CommandError, match=r"Cannot write .*: No such file"):
        load(
            tmp_path,
            "follower,followee\n2,1\n",
            "--skip-invalid",
            str(tmp_path / "none" / "bad.csv"),
        )
    assert pairs() == set()


# An import and what users do ----------------------------------------------------------------------


def at(event_id: int) -> str:
    return envelope.format_time(time_of(event_id))


def test_the_same_file_again_changes_nothing_that_happened_since(tmp_path: Path) -> None:
    text = "follower,followee\n2,1\n3,1\n"
    load(tmp_path, text)
    apply(UserUnfollowedFactory(follower_id=2, followee_id=1))
    before = contents()
    assert load(tmp_path, text) == "2 follows read, 0 new"
    assert contents() == before
    assert pairs() == {(3, 1)}


def test_what_a_user_did_before_an_import_counts_more_unless_the_file_is_newer(
    tmp_path: Path,
) -> None:
    text = "follower,followee\n2,1\n3,1\n"
    apply(
        UserFollowedFactory(follower_id=2, followee_id=1),
        gone := UserUnfollowedFactory(follower_id=2, followee_id=1),
        later := UserUnfollowedFactory(follower_id=3, followee_id=1),
    )
    assert load(tmp_path, text) == "2 follows read, 0 new"
    assert load(tmp_path, text, "--as-of", at(gone.event_id)) == "2 follows read, 0 new"
    assert load(tmp_path, text, "--as-of", at(later.event_id - 1)) == "2 follows read, 1 new"
    assert pairs() == {(2, 1)}
    assert Feed.objects.get(user_id=1).follower_count == 1


@pytest.mark.parametrize(
    ("as_of", "complaint"),
    [
        (
            "yesterday",
            "--as-of must be an RFC 3339 time with a zone. Such as 2026-01-31T12:00:00Z.",
        ),
        ("2026-01-31", "--as-of must be an RFC 3339 time with a zone."),
        ("2026-01-31T12:00:00", "--as-of must be an RFC 3339 time with a zone."),
        ("2019-01-31T12:00:00Z", "--as-of lies before all ids, which begin with the year 2024."),
        (
            "2224-01-31T12:00:00Z",
            "--as-of lies in the future: what users do until then would have no effect.",
        ),
        ("", "--as-of must be an RFC 3339 time with a zone."),
    ],
)
def test_a_time_that_cannot_be_is_refused(tmp_path: Path, as_of: str, complaint: str) -> None:
    with pytest.raises(CommandError, match=re.escape(complaint)):
        load(tmp_path, "follower,followee\n2,1\n", "--as-of", as_of)
    assert pairs() == set()


def test_imports_and_events_give_the_same_in_any_order() -> None:
    facts: list[Any] = [
        UserFollowedFactory(follower_id=2),
        UserUnfollowedFactory(follower_id=3),
        UserUnfollowedFactory(follower_id=2),
        UserFollowedFactory(follower_id=4),
    ]
    steps: list[Callable[[], object]] = [partial(apply, fact) for fact in facts]
    steps.append(partial(imports.import_follows, [(2, 1), (3, 1), (5, 1)]))
    between = imports.event_id_of(time_of(facts[2].event_id - 1))
    steps.append(partial(imports.import_follows, [(2, 1), (3, 1), (6, 1)], event_id=between))
    ends = set()
    for seed in range(20):
        random.Random(seed).shuffle(steps)
        for step in steps:
            step()
        ends.add(tuple(contents()["follows"]))
        lose_everything()
    assert len(ends) == 1


def documented_recipe() -> list[list[str]]:
    """Return the commands by which everything is rebuilt, as docs/how-to/rebuild.md has them."""
    page = Path("docs/how-to/rebuild.md").read_text().split("## Everything, from the log")[1]
    commands = re.findall(r"^ +manage\.py ([^#\n]+)", page, re.MULTILINE)
    return [command.split() for command in commands]


def test_everything_is_rebuilt_from_imports_and_the_log_as_documented(
    tmp_path: Path, feed_events: str, settings: Settings
) -> None:
    settings.FEED_STRATEGY, settings.FEED_PUSH_MAX_FOLLOWERS = "hybrid", 3
    users = range(1, 9)
    chance = random.Random(20261125)
    kinds = ["post"] * 5 + ["follow"] * 3 + ["unfollow"] * 3 + ["delete"]
    steps = [(chance.choice(kinds), chance.choice(users), chance.choice(users)) for _ in range(300)]
    facts = history(steps)
    graph = "".join(
        f"{one},{other}\n"
        for one in users
        for other in users
        if one != other and chance.random() < 0.5
    )
    worker = Worker()
    for number, fact in enumerate(facts):
        producer.publish(fact.to_event())
        worker.process(fact)
        if number in (100, 200):  # the second time is a mistake, and must be none
            load(tmp_path, f"follower,followee\n{graph}", name="follows.csv")
    before = contents()
    feeds = {user: feed(user) for user in users}
    assert sum(map(len, feeds.values())) > 100

    lose_everything()
    for command, *arguments in documented_recipe():
        arguments = [
            str(tmp_path / "follows.csv") if name == "follows.csv" else name for name in arguments
        ]
        call_command(command, *arguments, stdout=StringIO(), verbosity=0)
    assert {user: feed(user) for user in users} == feeds
    after = contents()
    for table in ("follows", "processed_events"):
        assert after[table] == before[table]
    assert verification.verify().equal


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"Cannot read .*: No such file"):
        call_command("import_follows", str(tmp_path / "none.csv"))


def test_feeds_are_right_at_once_after_an_import_over_existing_posts(tmp_path: Path) -> None:
    posts = [PostCreatedFactory(author_id=1) for _ in range(3)]
    apply(*posts)
    load(tmp_path, "follower,followee\n2,1\n")
    assert feed(2) == [post.post_id for post in reversed(posts)]
    apply(later := PostCreatedFactory(author_id=1))
    assert feed(2)[0] == later.post_id
    assert len(feed(2)) == 4
    assert verification.verify().equal
