"""Cells: which slots there are, who is in which, and what a map may say."""

import json
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from pytest_django import Settings

from eventbus import cellmap, cells, kafka
from eventbus.database.sql import bigints, fetch
from eventbus.ids.snowflake import MAX_ID


def a_map(**cells_of: dict[str, str]) -> str:
    places = {
        name: {"database": f"postgresql://u:secret@{name}/feed", "redis": f"redis://{name}"} | more
        for name, more in cells_of.items()
    }
    return json.dumps({"ids": min(places), "cells": places})


TWO = a_map(a={"slots": "0-511"}, b={"slots": "512-1023"})


@pytest.mark.django_db
def test_sql_and_python_agree_on_the_slot_of_everybody() -> None:
    random.seed(18)
    users = [random.randint(1, MAX_ID) for _ in range(5_000)]
    edges = [2**power + more for power in range(63) for more in (-1, 0, 1)]
    users += [user for user in edges if 0 <= user <= MAX_ID]
    users += [cells.MODULUS * factor + more for factor in (1, 2, 2**31) for more in (-1, 0, 1)]
    sql = f"SELECT u, {cells.SLOT_SQL.format(user='u')} FROM unnest(%s::bigint[]) AS u"  # noqa: S608
    assert dict(fetch(sql, [bigints(users)])) == {user: cells.slot_of(user) for user in users}


def test_the_slots_of_users_never_change() -> None:
    slots = {1: 143, 2: 286, 1_000_000: 470, MAX_ID: 143}
    assert {user: cells.slot_of(user) for user in slots} == slots


def test_users_who_signed_up_one_after_the_other_are_spread_over_all_slots() -> None:
    sizes = Counter(cells.slot_of(user) for user in range(1, 102_401))
    assert len(sizes) == cellmap.SLOTS
    assert max(sizes.values()) < 150


def test_without_a_map_one_cell_without_a_name_serves_everybody() -> None:
    assert list(cells.every()) == [""]
    assert cells.of(1) == cells.of(MAX_ID) == cells.own() == cells.here() == cells.of_ids()
    assert (cells.own().alias, len(cells.own().holds)) == ("default", cellmap.SLOTS)
    assert kafka.groups() == {"fanout": "feed-events", "dlq": "dead-letter-events"}
    assert cells.holds_sql("user_id") == "true"


def test_a_map_is_read_from_a_file_or_the_variable_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("B_URL", "redis://secret@b")
    text = a_map(
        a={"slots": "0-99, 200", "holds": "0-1023"},
        b={"slots": "100-199,201-1023", "redis": "env:B_URL"},
    )
    file = tmp_path / "cells.json"
    file.write_text(text)
    found = cellmap.read(str(file))
    assert found == cellmap.read(text)
    assert cellmap.written(found.places["a"].slots) == "0-99,200"
    assert (len(found.places["a"].holds), found.places["b"].redis) == (1024, "redis://secret@b")
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            a_map(a={"slots": "0-511"}, b={"slots": "511-1023"}),
            "Slot 511 is served by both a and b",
        ),
        (a_map(a={"slots": "0-500"}, b={"slots": "512-1023"}), "No cell serves slots 501-511"),
        (
            a_map(a={"slots": "0-1023", "holds": "1-1023"}),
            "Cell a serves slots that it does not hold",
        ),
        (a_map(a={"slots": "0-1024"}), "Cell a has slots 0-1024, which are not within 0-1023"),
        (a_map(a={"slots": "all"}), "Cell a has slots that are not like 0-511,700"),
        (a_map(a={"slots": "0-1023", "databse": "x"}), "Cell a has 'databse', which means nothing"),
        (
            a_map(a={"slots": "0-1023", "redis": "env:NOWHERE"}),
            "in the variable NOWHERE, which is not set",
        ),
        (a_map(A={"slots": "0-1023"}), "'A' is no name of a cell"),
        ('{"ids": "c", "cells": {"a": {}}}', '"ids" must name one of the cells'),
        ('{"ids": "a", "ids": "a", "cells": {}}', "'ids' is in it twice"),
        ("{postgresql://u:secret@a", "It is not JSON"),
        ("/nowhere/cells.json", "/nowhere/cells.json cannot be read: No such file or directory"),
        (
            a_map(
                a={"slots": "0-511", "database": "postgresql://u:secret@x/feed"},
                b={"slots": "512-1023", "database": "postgresql://u:secret@x/feed"},
            ),
            "Cells a and b have the same database",
        ),
        (
            a_map(
                a={"slots": "0-511", "database": "postgresql://u:secret@x/feed?sslmode=require"},
                b={"slots": "512-1023", "database": "postgres://other:secret@X/feed"},
            ),
            "Cells a and b have the same database",
        ),
        *(
            (
                a_map(
                    a={"slots": "0-511", "redis": "redis://:secret@x/0"},
                    b={"slots": "512-1023", "redis": same},
                ),
                "Cells a and b have the same Redis",
            )
            for same in ("redis://x", "rediss://u:secret@X:6379/0", "redis://x:6379/1")
        ),
    ],
)
def test_a_wrong_map_is_refused_in_one_sentence_without_addresses(
    source: str, sentence: str
) -> None:
    with pytest.raises(ImproperlyConfigured) as refused:
        cellmap.read(source)
    assert sentence in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.fixture
def map_file(tmp_path: Path, settings: Settings) -> Iterator[Path]:
    """Have this process go by a map that is in a file."""
    file = tmp_path / "cells.json"
    file.write_text(TWO)
    settings.FEED_CELLS_FILE = file
    cells.use(cellmap.read(str(file)), "a")
    yield file
    cells.use(cellmap.ONE_CELL, cells.NO_CELL)


def test_a_process_hears_of_slots_that_have_moved(map_file: Path) -> None:
    assert (cells.of(1).name, cells.own().name) == ("a", "a")
    map_file.write_text(a_map(a={"slots": "0-99", "holds": "0-511"}, b={"slots": "100-1023"}))
    cells.refresh()
    assert (cells.of(1).name, cells.own().holds_user(1)) == ("b", True)


def test_of_threads_that_look_at_the_map_the_one_that_is_late_does_not_bring_back_an_old_one(
    map_file: Path,
) -> None:
    """A pipe stands for a file on a server that is slow: it is read when somebody writes."""
    map_file.unlink()
    os.mkfifo(map_file)
    late = threading.Thread(target=cells.refresh)
    late.start()
    with map_file.open("w") as slow:  # returns when the thread has begun to read
        changed = map_file.with_suffix(".new")
        changed.write_text(a_map(a={"slots": "512-1023"}, b={"slots": "0-511"}))
        changed.rename(map_file)
        cells.refresh()
        slow.write(TWO)
    late.join()
    cells.refresh()
    assert [cells.of(user).name for user in (1, 4)] == ["b", "a"]


@pytest.mark.parametrize(
    "text",
    ["{", a_map(a={"slots": "0-511"}), a_map(a={"slots": "0-511"}, c={"slots": "512-1023"})],
)
def test_a_wrong_map_changes_nothing_in_a_process_that_runs(
    map_file: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does one of other cells, to which the process has no connections; a right one does."""
    map_file.write_text(text)
    for _ in range(3):
        cells.refresh()
    assert [cells.of(user).name for user in (1, 4)] == ["a", "b"]
    assert sum("cell_map_refused" in line.getMessage() for line in caplog.records) == 1
    map_file.write_text(a_map(a={"slots": "512-1023"}, b={"slots": "0-511"}))
    cells.refresh()
    assert [cells.of(user).name for user in (1, 4)] == ["b", "a"]


def test_code_is_about_the_cell_that_it_says(map_file: Path) -> None:
    a, b = cells.every().values()
    assert cells.here() == a
    with cells.on(b):
        assert (cells.here(), cells.alias()) == (b, "cell_b")
        assert list(kafka.groups()) == ["fanout.b", "dlq.b"]
        with cells.on(a):
            assert cells.here() == a
        assert cells.here() == b
    assert list(kafka.groups()) == ["fanout.a", "dlq.a"]


def test_whose_a_name_is_does_not_change_when_ids_come_from_elsewhere(map_file: Path) -> None:
    """Or a dead letter of no cell would be stored by both or by none, as each has read the map."""
    for ids in ("a", "b"):
        map_file.write_text(json.dumps(json.loads(TWO) | {"ids": ids}))
        cells.refresh()
        assert cells.of_ids().name == ids
        assert [cells.owner_of(group).name for group in ("fanout.b", "fanout", "x.y")] == [*"baa"]
