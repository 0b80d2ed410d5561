"""Keyset pages over a list that changes: nothing twice, nothing left out, and back to the start."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rest_framework.exceptions import ParseError
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory

from eventbus.ids.snowflake import MAX_ID
from posts.pagination import START, Page, Position, limit_of, link, paginate, position_of

NO_CHANGE: Callable[[], None] = lambda: None  # noqa: E731

lists = st.sets(st.integers(1, MAX_ID), max_size=30)
limits = st.integers(1, 7)


def read(numbers: set[int], position: Position, limit: int) -> list[int]:
    """Read a list of numbers as the tables are read: the nearest to the position first."""
    if position.newer:
        return sorted(n for n in numbers if n > position.id)[:limit]
    return sorted((n for n in numbers if n <= position.id), reverse=True)[:limit]


def page_at(numbers: set[int], position: Position, limit: int) -> Page:
    return paginate(partial(read, numbers), lambda number: number, position, limit)


def walk(numbers: set[int], limit: int, between: Callable[[], None] = NO_CHANGE) -> Iterator[Page]:
    """Yield every page from the start to the end, something happening before each next one."""
    page = page_at(numbers, START, limit)
    yield page
    while page.next:
        between()
        page = page_at(numbers, page.next, limit)
        yield page


def request_for(query: str) -> Request:
    return Request(APIRequestFactory().get(f"/feeds/1?{query}"))


@given(lists, limits)
def test_all_pages_together_are_the_list(numbers: set[int], limit: int) -> None:
    pages = list(walk(numbers, limit))
    assert [n for page in pages for n in page.rows] == sorted(numbers, reverse=True)
    assert all(len(page.rows) == limit for page in pages[:-1])
    assert len(pages[-1].rows) > 0 or not numbers


@given(lists, limits)
def test_previous_leads_back_through_the_same_pages_to_the_start(
    numbers: set[int], limit: int
) -> None:
    pages = list(walk(numbers, limit))
    page = pages[-1]
    for expected in reversed(pages[:-1]):
        assert page.previous is not None
        page = page_at(numbers, page.previous, limit)
        assert page.rows == expected.rows
        assert page.next is not None
    assert page.previous is None


@given(lists, limits, st.data())
def test_what_stays_is_shown_exactly_once_whatever_comes_and_goes_meanwhile(
    numbers: set[int], limit: int, data: st.DataObject
) -> None:
    changing = set(numbers)
    came: set[int] = set()

    def change() -> None:
        new = data.draw(st.sets(st.integers(1, MAX_ID), max_size=3)) - numbers
        came.update(new)
        gone = (
            data.draw(st.sets(st.sampled_from(sorted(changing)), max_size=2)) if changing else set()
        )
        changing.difference_update(gone)
        changing.update(new - gone)

    shown = [n for page in walk(changing, limit, between=change) for n in page.rows]
    assert shown == sorted(set(shown), reverse=True)
    assert changing - came <= set(shown) <= numbers | came


def test_a_page_beyond_everything_leads_back_to_the_list() -> None:
    page = page_at({5, 6, 7}, Position(4, newer=False), 2)
    assert (page.rows, page.next) == ([], None)
    assert page.previous is not None
    assert page_at({5, 6, 7}, page.previous, 2).rows == [6, 5]


def test_the_start_of_a_list_that_grew_is_reached_by_previous() -> None:
    numbers = {1, 2, 3, 4}
    second = page_at(numbers, page_at(numbers, START, 2).next or START, 2)
    numbers |= {5}
    back = page_at(numbers, second.previous or START, 2)
    assert back.rows == [4, 3]
    newest = page_at(numbers, back.previous or START, 2)
    assert (newest.rows, newest.previous) == ([5], None)


@given(st.integers(0, MAX_ID), st.booleans(), st.integers(1, 100))
def test_a_position_and_its_limit_survive_the_journey_through_a_link(
    number: int, newer: bool, limit: int
) -> None:
    position = Position(number, newer)
    url = link(request_for(f"limit={limit}"), position)
    assert url is not None
    address, _, query = url.partition("?")
    assert address == "http://testserver/feeds/1"
    assert position_of(request_for(query)) == position
    assert limit_of(request_for(query)) == limit


def test_without_parameters_a_list_starts_at_its_start_with_20() -> None:
    assert position_of(request_for("")) == START
    assert limit_of(request_for("")) == 20
    assert link(request_for(""), None) is None


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_whatever_else_is_sent_as_a_cursor_is_refused_or_a_position(cursor: str) -> None:
    request = Request(APIRequestFactory().get("/feeds/1", {"cursor": cursor}))
    assert code_or_position(request) in ("invalid_cursor", "a position")


def code_or_position(request: Request) -> str:
    try:
        position = position_of(request)
    except ParseError as error:
        return str(error.get_codes())
    return "a position" if 0 <= position.id <= MAX_ID else f"{position}"


@pytest.mark.parametrize(
    "limit", ["0", "101", "-1", "1.5", "١", "1e1", "+5", " 5", "", "9" * 5_000]
)
def test_any_other_limit_is_refused(limit: str) -> None:
    request = Request(APIRequestFactory().get("/feeds/1", {"limit": limit}))
    with pytest.raises(ParseError) as refusal:
        limit_of(request)
    assert refusal.value.get_codes() == "invalid_limit"
