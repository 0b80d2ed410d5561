"""Snowflake ids: 41 bits of milliseconds, 10 of node, 12 of sequence; never one twice."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import chain, pairwise, repeat

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eventbus.exceptions import IdsUnavailable
from eventbus.ids import clock, snowflake
from eventbus.ids.snowflake import EPOCH_MS, MAX_ID, MAX_SEQUENCE, NODES, Generator

IDS_PER_MS = MAX_SEQUENCE + 1
LAST_MS = EPOCH_MS + (1 << 41) - 1
START = EPOCH_MS + 1_000
clock_readings = st.lists(st.integers(START - 50, START + 50), min_size=1, max_size=200)


def generator(*readings: int, node_id: int = 7, until_ms: int = LAST_MS) -> Generator:
    """Return a generator whose clock shows `readings` and then stands still."""
    clock = chain(readings, repeat(readings[-1]))
    return Generator(node_id, START, until_ms, clock=lambda: next(clock))


def parts(snowflake_id: int) -> tuple[int, int, int]:
    return snowflake_id >> 22, snowflake_id >> 12 & 0x3FF, snowflake_id & 0xFFF


def test_the_first_and_the_last_id_of_the_layout() -> None:
    assert snowflake.compose(EPOCH_MS, 0, 1) == 1
    assert snowflake.compose(LAST_MS, NODES - 1, MAX_SEQUENCE) == MAX_ID == 2**63 - 1


@given(st.integers(EPOCH_MS, LAST_MS), st.integers(0, NODES - 1), st.integers(0, MAX_SEQUENCE))
def test_an_id_tells_when_and_where_it_was_minted(ms: int, node_id: int, sequence: int) -> None:
    minted = snowflake.compose(ms, node_id, sequence)
    assert parts(minted) == (ms - EPOCH_MS, node_id, sequence)
    assert snowflake.milliseconds_of(minted) == ms
    assert snowflake.time_of(minted) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
        milliseconds=ms
    )


@given(clock_readings)
@example([START, START - 50, START, START + 1])
def test_ids_rise_however_the_clock_steps_back_or_stands_still(readings: list[int]) -> None:
    ids = generator(*readings)
    minted = [ids.next_id() for _ in range(len(readings) + 10)]
    assert all(earlier < later for earlier, later in pairwise(minted))
    assert {parts(one)[1] for one in minted} == {7}


@given(clock_readings, st.lists(st.integers(1, IDS_PER_MS), min_size=1, max_size=20))
def test_the_ids_of_a_run_follow_each_other_within_a_millisecond(
    readings: list[int], counts: list[int]
) -> None:
    ids = generator(*readings)
    last = 0
    for count in counts:
        run = ids.next_run(count)
        assert len(run) == count
        assert run[0] > last
        assert run[-1] == run[0] + count - 1
        assert snowflake.milliseconds_of(run[0]) == snowflake.milliseconds_of(run[-1])
        last = run[-1]
    assert ids.next_id() > last


@given(clock_readings)
def test_no_id_is_older_than_the_start_of_the_lease(readings: list[int]) -> None:
    assert snowflake.milliseconds_of(generator(*readings).next_id()) >= START


def test_more_ids_than_fit_into_a_millisecond_borrow_from_the_next() -> None:
    ids = generator(START)
    minted = [ids.next_id() for _ in range(IDS_PER_MS + 1)]
    assert snowflake.milliseconds_of(minted[-2]) == START
    assert snowflake.milliseconds_of(minted[-1]) == START + 1


def test_a_range_gives_all_its_ids_and_then_none() -> None:
    ids = generator(START, until_ms=START + 1)
    assert len({ids.next_id() for _ in range(2 * IDS_PER_MS)}) == 2 * IDS_PER_MS
    for _ in range(2):
        with pytest.raises(IdsUnavailable):
            ids.next_id()


def test_a_clock_past_the_end_of_the_range_gets_no_id_until_the_range_grows() -> None:
    ids = generator(START, START + 10, until_ms=START + 5)
    first = ids.next_id()
    with pytest.raises(IdsUnavailable):
        ids.next_id()
    ids.until_ms = START + 20
    assert ids.next_id() > first


def test_threads_never_get_the_same_id() -> None:
    ids = Generator(7, clock.host_ms(), LAST_MS, clock=clock.host_ms)
    with ThreadPoolExecutor(8) as threads:
        minted = list(threads.map(lambda _: [ids.next_id() for _ in range(2_000)], range(8)))
    assert len(set(chain(*minted))) == 16_000


@given(st.integers(0, MAX_ID))
@example(0)
@example(MAX_ID)
def test_a_text_of_digits_holds_its_number(number: int) -> None:
    assert snowflake.number_in(str(number)) == number
    assert snowflake.id_in(str(number)) == (number or None)
    assert snowflake.is_id(number) == (number > 0)


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", " 1", "1_0", "1.0", "٣", "x", str(MAX_ID + 1), "0" * 20]
)
def test_anything_else_holds_none(text: str) -> None:
    assert snowflake.number_in(text) is None
    assert snowflake.id_in(text) is None


@pytest.mark.parametrize("given", ["01", "0", 1, 1.0, True, None, ["1"], {"1": 1}])
def test_an_id_in_json_has_one_form(given: object) -> None:
    assert snowflake.id_in(given) is None


@pytest.mark.parametrize("number", [0, -1, MAX_ID + 1, 1.0, True, "1", None])
def test_what_is_no_id(number: object) -> None:
    assert not snowflake.is_id(number)
