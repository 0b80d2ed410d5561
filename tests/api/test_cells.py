"""One API for two cells: who is asked, what it looks like, and who notices that one is away."""

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoDbBlocker

from eventbus import breaker, cellmap, cells, kafka, producer
from eventbus.ids import clock, node_lease
from eventbus.ids.snowflake import NODES
from eventbus.models import (
    CellIdentity,
    DeadLetter,
    DeadLetterGroup,
    Erasure,
    IdempotencyKey,
    ProcessedEvent,
    SnowflakeNode,
)
from feeds.models import CacheState, Follow
from feeds.read import here
from feedsite import cell_check, settings
from feedsite.middleware import POLICY
from tests.admin.pages import PIPELINE, context_of, text_of
from tests.api.server import ApiClient, ApiServer
from tests.api.test_live import Live
from tests.api.two_cells import (
    ALIAS_B,
    HALVES,
    REDIS,
    TwoCells,
    close_breakers,
    readers_of,
    two_cells,
)
from tests.e2e.system import wait_until
from tests.factories import PostCreatedFactory, apply
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", ALIAS_B])


@pytest.fixture(scope="module")
def two(
    django_db_setup: None,
    django_db_blocker: DjangoDbBlocker,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TwoCells]:
    kafka.create_topics()
    with django_db_blocker.unblock(), two_cells(tmp_path_factory.mktemp("cell-b")) as made:
        identify(a="a", b="b")
        yield made
        CellIdentity.objects.all().delete()
        CacheState.objects.all().delete()
        producer.close()


@pytest.fixture(scope="module")
def both(two: TwoCells) -> Iterator[dict[str, ApiServer]]:
    found = {"front on": ApiServer(is_hot=True), "front off": ApiServer(is_hot=False)}
    yield found
    for server in found.values():
        server.stop()
    node_lease.forget()


@pytest.fixture(autouse=True)
def known_databases(two: TwoCells, transactional_db: None) -> None:
    """Have each database say whose it is, and have somebody hold a lease, which the end of each test
    has forgotten: a cell that has given none asks the others before it gives its first.
    """
    identify(a="a", b="b")
    nodes = [SnowflakeNode(node_id=number) for number in range(NODES)]
    nodes[-1].leased_until_ms = clock.host_ms() + node_lease.LEASE_MS
    SnowflakeNode.objects.bulk_create(nodes, ignore_conflicts=True)


@pytest.fixture(params=["front on", "front off"])
def api(request: pytest.FixtureRequest, both: dict[str, ApiServer]) -> ApiServer:
    close_breakers()
    node_lease.forget()  # of a table that was emptied: other cells would be asked for theirs
    node_lease.next_id()
    return both[request.param]


def post_in(name: str, author: int) -> None:
    """Have one cell alone know of a post, so that it can be told who was asked."""
    with cells.on(cells.every()[name]):
        apply(PostCreatedFactory(author_id=author, content=f"in {name}"))
        here.pages.invalidate([author])


def follow_in(name: str, follower: int, followee: int) -> None:
    with cells.on(cells.every()[name]):
        Follow.objects.create(follower_id=follower, followee_id=followee, event_id=1)


def content_of(answer: httpx.Response) -> list[str]:
    return [post["content"] for post in answer.json()["results"]]


def test_a_feed_is_read_in_the_cell_of_its_reader(api: ApiServer) -> None:
    for name in ("a", "b"):
        reader = readers_of(name)[0]
        post_in(name, reader)
        assert content_of(api.client(reader).get(f"/feeds/{reader}")) == [f"in {name}"]


def test_only_first_pages_of_its_own_readers_are_kept_of_a_cell(
    both: dict[str, ApiServer], api: ApiServer
) -> None:
    """Each page is found where it was kept: the Redis of one cell knows nothing of the other's."""
    readers = {name: readers_of(name)[1] for name in ("a", "b")}
    for name, reader in readers.items():
        post_in(name, reader)
        wait_until(lambda: is_hit(api.client(reader), reader))  # noqa: B023 - called at once
        assert content_of(api.client(reader).get(f"/feeds/{reader}")) == [f"in {name}"]


def is_hit(client: ApiClient, reader: int) -> bool:
    return client.get(f"/feeds/{reader}").headers["x-cache"] == "hit"


def test_a_key_is_kept_in_the_cell_of_who_writes_and_found_again(api: ApiServer) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        author = readers_of(name)[2]
        key = f"{name} {api.port}"
        body = b'{"content": "once"}'
        answers = [api.client(author).post("/posts", body, idempotency_key=key) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [202, 202]
        assert answers[0].json()["event_id"] == answers[1].json()["event_id"]
        assert keys_in(name, key) == 1
        assert keys_in(other, key) == 0


def test_a_key_of_a_reader_who_moves_is_found_in_either_cell(two: TwoCells, api: ApiServer) -> None:
    author, key, body = readers_of("a")[3], f"moving {api.port}", b'{"content": "once"}'
    try:
        go_by(two, HALVES, b="0-1023")
        first = api.client(author).post("/posts", body, idempotency_key=key)
        go_by(two, {"a": "", "b": "0-1023"}, a="0-511")
        again = api.client(author).post("/posts", body, idempotency_key=key)
    finally:
        go_by(two, HALVES)
    assert first.json()["event_id"] == again.json()["event_id"]
    assert [keys_in(name, key) for name in ("a", "b")] == [1, 1]


def go_by(two: TwoCells, slots: dict[str, str], **holds: str) -> None:
    """Write a map, and have this process read it at once."""
    two.write(slots, **holds)
    cells.refresh()


def keys_in(name: str, key: str) -> int:
    with cells.on(cells.every()[name]):
        return IdempotencyKey.objects.filter(key=key).count()


def test_what_became_of_a_write_is_told_by_the_cell_of_who_wrote(api: ApiServer) -> None:
    author = readers_of("b")[3]
    client = api.client(author)
    address = client.post("/posts", b'{"content": "new"}').headers["location"]
    event_id = int(address.rpartition("/")[2])
    assert client.get(address).json()["state"] == "pending", "never 404 after 202"

    processed_in("a", event_id, author)
    assert client.get(address).json()["state"] == "pending", "another cell was faster"
    processed_in("b", event_id, author)
    assert client.get(address).json()["state"] == "processed"


def processed_in(name: str, event_id: int, actor_id: int, kind: str = "post.created") -> None:
    with cells.on(cells.every()[name]):
        ProcessedEvent.objects.create(event_id=event_id, type=kind, actor_id=actor_id)


def test_a_user_is_erased_when_every_cell_has_erased_them(two: TwoCells, api: ApiServer) -> None:
    """Or they would be told that it is done, with their posts in the cells of their followers."""
    user = readers_of("b")[10]
    client = api.client(user)
    address = client.request("DELETE", f"/users/{user}", {}).headers["location"]
    event_id = int(address.rpartition("/")[2])
    processed_in("b", event_id, user, "user.erased")
    assert client.get(address).json()["state"] == "pending"

    processed_in("a", event_id, user, "user.erased")
    with cells.on(cells.every()["a"]):
        Erasure.objects.create(user_id=user, event_id=event_id, step="followers")
    told = client.get(address).json()
    assert (told["state"], told["step"]) == ("pending", "followers")
    with cells.on(cells.every()["a"]):
        Erasure.objects.update(finished_at=timezone.now())
    assert client.get(address).json()["state"] == "processed"


def test_a_cell_that_is_away_has_erased_nobody_yet(two: TwoCells, api: ApiServer) -> None:
    user, event_id = readers_of("a")[10], node_lease.next_id()
    for name in ("a", "b"):
        processed_in(name, event_id, user, "user.erased")
    client = api.client(user)
    assert client.get(f"/events/{event_id}").json()["state"] == "processed"
    two.send(signal.SIGSTOP)
    try:
        assert client.get(f"/events/{event_id}").json()["state"] == "pending"
    finally:
        two.send(signal.SIGCONT)
        close_breakers()


def test_followers_of_all_cells_are_one_list(api: ApiServer) -> None:
    followers = sorted(readers_of("a")[:12] + readers_of("b")[:12], reverse=True)
    followee = 1_000
    for follower in followers:
        follow_in(cells.of(follower).name, follower, followee)
    client = api.client(followee)
    assert pages_of(client, f"/users/{followee}/followers?limit=5", "next") == followers

    last = pages(client, f"/users/{followee}/followers?limit=5", "next")[-1]
    back = pages_of(client, last["previous"], "previous", reverse=True)
    assert back == followers[: len(followers) - len(last["results"])]


def test_a_follower_whom_two_cells_hold_is_told_once(two: TwoCells, api: ApiServer) -> None:
    """As while readers move from one cell to another, and before what is left of them is taken
    away.
    """
    followee, followers = 1_001, sorted(readers_of("a")[:3] + readers_of("b")[:3], reverse=True)
    for follower in followers:
        for name in ("a", "b"):
            follow_in(name, follower, followee)
    assert (
        pages_of(api.client(followee), f"/users/{followee}/followers?limit=2", "next") == followers
    )


def pages(client: ApiClient, address: str | None, way: str) -> list[dict[str, Any]]:
    found = []
    while address:
        found.append(client.get(address).json())
        address = found[-1][way]
    return found


def pages_of(client: ApiClient, address: str, way: str, *, reverse: bool = False) -> list[int]:
    """Return the users on all pages from there on."""
    found = pages(client, address, way)
    if reverse:
        found.reverse()
    return [int(row["user_id"]) for page in found for row in page["results"]]


def test_whom_a_user_follows_is_told_by_their_cell(api: ApiServer) -> None:
    follower, asking = readers_of("b")[4], readers_of("a")[4]
    follow_in("b", follower, 77)
    found = api.client(asking, "feeds:read").get(f"/users/{follower}/following").json()
    assert found["results"] == [{"user_id": "77"}]


def test_an_export_has_the_followers_of_all_cells(api: ApiServer) -> None:
    user = readers_of("b")[5]
    followers = sorted([readers_of("a")[5], readers_of("b")[6]])
    for follower in followers:
        follow_in(cells.of(follower).name, follower, user)
    post_in("b", user)
    lines = api.client(user).get(f"/users/{user}/export").text.splitlines()
    told = [json.loads(line) for line in lines]
    assert sorted(int(one["user_id"]) for one in told if one["kind"] == "follower") == followers
    assert [one["content"] for one in told if one["kind"] == "post"] == ["in b"]
    assert told[-1]["kind"] == "end"


# A cell that is away ------------------------------------------------------------------------------


@pytest.fixture
def b_stands_still(two: TwoCells, api: ApiServer) -> Iterator[None]:
    """Both servers of b keep their connections, and answer nothing."""
    two.send(signal.SIGSTOP)
    yield
    two.send(signal.SIGCONT)
    close_breakers()


@pytest.mark.usefixtures("b_stands_still")
def test_readers_of_another_cell_do_not_notice_one_that_stands_still(api: ApiServer) -> None:
    near, far = readers_of("a")[:20], readers_of("b")[:60]
    with ThreadPoolExecutor(70) as clients:
        # More than there are threads for the readers of b.
        refused = [clients.submit(status_of, api, user) for user in far]
        assert [status_of(api, user) for user in near] == [200] * 20
        assert not all(one.done() for one in refused), "all that while others waited"
        assert [status_of(api, user) for user in near] == [200] * 20
        body = b'{"content": "while b is away"}'
        assert api.client(near[0]).post("/posts", body, idempotency_key="k").status_code == 202
        assert {one.result() for one in refused} == {503}
    assert api.client(near[0]).get("/users/1/followers").status_code in (403, 503)
    assert breaker.of(cells.every()["b"]).postgresql.is_open
    assert not any(one.is_open for one in breaker.of(cells.every()["a"]))

    wait_until(lambda: "postgresql.b: ok" not in ready(api).text)
    assert ready(api).status_code == 200, "the readers of a have to be answered"
    assert "postgresql.a: ok\n" in ready(api).text


def test_a_cell_that_is_back_answers_its_readers(two: TwoCells, api: ApiServer) -> None:
    reader = readers_of("b")[7]
    two.send(signal.SIGSTOP)
    assert status_of(api, reader) == 503
    two.send(signal.SIGCONT)
    wait_until(lambda: status_of(api, reader) == 200)
    wait_until(lambda: "postgresql.b: ok\n" in ready(api).text)


def status_of(api: ApiServer, user: int) -> int:
    return api.client(user).get(f"/feeds/{user}").status_code


def ready(api: ApiServer) -> httpx.Response:
    return api.anonymous().get("/readyz")


def test_servers_that_were_killed_take_only_their_readers_along(
    two: TwoCells, api: ApiServer
) -> None:
    near, far = readers_of("a")[0], readers_of("b")[0]
    two.send(signal.SIGKILL)
    wait_until(lambda: status_of(api, far) == 503)
    assert [status_of(api, near) for _ in range(20)] == [200] * 20
    two.revive()
    wait_until(lambda: status_of(api, far) == 200)


def test_streams_of_a_cell_without_its_redis_go_on_by_polling_and_others_notice_nothing(
    two: TwoCells, both: dict[str, ApiServer]
) -> None:
    front = both["front on"]
    readers = {name: readers_of(name)[11] for name in ("a", "b")}
    wait_until(lambda: front.is_hearing)
    streams = {name: Live(front, "?since=0", user=reader) for name, reader in readers.items()}
    for name, reader in readers.items():
        first = told_in(name, reader)
        assert streams[name].new() == (first, 1)
    two.send(signal.SIGSTOP, REDIS)
    try:
        streams["b"].until("polling")
        with cells.on(cells.every()["b"]):
            post = PostCreatedFactory(author_id=readers["b"])
            apply(post)
        assert streams["b"].new() == (post.post_id, 2)
        second = told_in("a", readers["a"])
        kind, told = streams["a"].any_event()
        assert (kind, told["newest_id"], told["count"]) == ("new", str(second), 2)
    finally:
        two.send(signal.SIGCONT)
        close_breakers()
    for stream in streams.values():
        stream.close()


def told_in(name: str, author: int) -> int:
    """Have a worker of the cell process a post, and tell of it."""
    post = PostCreatedFactory(author_id=author)
    with cells.on(cells.every()[name]):
        Worker().process(post)
    return int(post.post_id)


# The map ------------------------------------------------------------------------------------------


def test_the_api_does_not_start_on_the_database_of_another_cell(two: TwoCells) -> None:
    identify(a="a", b="other")
    with pytest.raises(ImproperlyConfigured, match="The database of cell b is that of cell other"):
        cell_check.require_cells()


def test_the_api_does_not_start_where_a_cell_lacks_what_the_map_says(two: TwoCells) -> None:
    with cells.on(cells.every()["b"]):
        CellIdentity.objects.update(holds="512-1000")
    with pytest.raises(ImproperlyConfigured, match="Cell b holds 512-1023 here, and 512-1000 by"):
        cell_check.require_cells()


def test_the_api_does_not_start_without_a_map_on_the_database_of_a_cell(two: TwoCells) -> None:
    cells.use(cellmap.ONE_CELL, cells.NO_CELL)
    try:
        with pytest.raises(ImproperlyConfigured, match="but the database is that of cell a"):
            cell_check.require_cells()
    finally:
        cells.use_settings()


def test_the_api_does_not_start_where_two_cells_have_one_redis_by_different_addresses(
    two: TwoCells, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = two.addresses["a"][1].replace("127.0.0.1", "localhost")
    monkeypatch.setitem(caches.settings, ALIAS_B, settings._cache(same))
    forget_cache(ALIAS_B)
    with pytest.raises(ImproperlyConfigured, match="Cells a and b have the same Redis"):
        cell_check.require_cells()
    forget_cache(ALIAS_B)


def forget_cache(alias: str) -> None:
    """Have this thread make its client anew."""
    with suppress(AttributeError):
        del caches[alias]


def test_a_database_that_turns_out_to_be_another_cells_is_not_ready(
    two: TwoCells, api: ApiServer
) -> None:
    identify(b="other")
    wait_until(lambda: "The database of cell b is that of cell other" in ready(api).text)
    identify(b="b")
    wait_until(lambda: "postgresql.b: ok\n" in ready(api).text)


def test_the_api_starts_while_a_cell_is_away(two: TwoCells) -> None:
    two.send(signal.SIGSTOP)
    try:
        cell_check.require_cells()
    finally:
        two.send(signal.SIGCONT)
        close_breakers()


def identify(**names: str) -> None:
    """Have the databases of the cells say that they are of these."""
    for name, said in names.items():
        with cells.on(cells.every()[name]):
            CellIdentity.objects.update_or_create(id=1, defaults={"name": said, "holds": "0-1023"})
    connections[ALIAS_B].close()  # its server may be killed


def test_a_changed_map_is_noticed_and_a_wrong_one_is_not_taken(
    two: TwoCells, api: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    reader = readers_of("a")[8]
    post_in("a", reader)
    post_in("b", reader)
    assert content_of(api.client(reader).get(f"/feeds/{reader}")) == ["in a"]

    two.write({"a": "", "b": "0-1023"}, a="0-511")
    wait_until(lambda: content_of(api.client(reader).get(f"/feeds/{reader}")) == ["in b"])
    two.write({"a": "0-511", "b": "511-1023"})
    wait_until(lambda: "Slot 511 is served by both a and b" in caplog.text)
    assert content_of(api.client(reader).get(f"/feeds/{reader}")) == ["in b"]
    assert "postgresql://" not in caplog.text

    two.write(HALVES)
    wait_until(lambda: content_of(api.client(reader).get(f"/feeds/{reader}")) == ["in a"])


# For people ---------------------------------------------------------------------------------------

ENTRIES = "/admin/eventbus/deadletter/"


@pytest.fixture
def staff(two: TwoCells, client: Client) -> Client:
    client.force_login(User.objects.create_superuser("boss"))
    close_breakers()
    return client


def dead_letter_in(name: str, count: int) -> list[int]:
    with cells.on(cells.every()[name]):
        group = DeadLetterGroup.objects.create(
            fingerprint=name,
            event_type="post.created",
            exception="app.Refused",
            message=name,
            first_seen=timezone.now(),
            last_seen=timezone.now(),
        )
        made = [
            DeadLetter.objects.create(
                group=group,
                topic=kafka.FEED_EVENTS,
                key=b"7",
                value=b"{}",
                headers=[],
                last_failed_at=timezone.now(),
            )
            for _ in range(count)
        ]
    return [entry.pk for entry in made]


def states_in(name: str) -> list[str]:
    with cells.on(cells.every()[name]):
        return list(DeadLetter.objects.order_by("id").values_list("state", flat=True))


def test_each_cell_shows_its_dead_letters_and_replays_them_there(staff: Client) -> None:
    dead_letter_in("a", 2)
    ids = dead_letter_in("b", 3)
    page = text_of(staff, ENTRIES)
    assert "<strong>a</strong>: 2 wait" in page
    assert ">b</a>: 3 wait" in page
    there = f"/cells/b{ENTRIES}"
    assert f'href="{there}"' in page
    assert len(context_of(staff, there)["cl"].result_list) == 3
    chosen = {"action": "replay_selected", "_selected_action": ids, "confirmed": "yes"}
    assert staff.post(there, chosen).status_code == 302
    assert states_in("b") == ["replayed"] * 3
    assert states_in("a") == ["open"] * 2


def test_the_inspector_leads_to_the_cell_of_the_user(staff: Client) -> None:
    user = readers_of("b")[9]
    answer = staff.get(f"/admin/feeds/feed/{user}/inspect/", follow=True)
    assert answer.redirect_chain == [(f"/cells/b/admin/feeds/feed/{user}/inspect/", 302)]
    assert answer.status_code == 200
    assert f'data-address="/feeds/{user}/live?' in answer.content.decode()


def test_a_cell_that_there_is_not_has_no_pages(staff: Client) -> None:
    answer = staff.get("/cells/c/admin/")
    assert answer.status_code == 404
    assert "<h1>There is nothing here</h1>" in answer.content.decode()
    assert answer.headers["Content-Security-Policy"] == POLICY


def test_without_its_slash_the_start_page_of_a_cell_is_found_too(staff: Client) -> None:
    assert staff.get("/cells/b/admin").headers["Location"] == "/cells/b/admin/"


def test_the_log_of_actions_tells_the_cells_of_what_was_done_apart(staff: Client) -> None:
    """Two dead letters may have the same number, each in its cell."""
    [entry] = dead_letter_in("b", 1)
    chosen = {"action": "discard_selected", "_selected_action": entry, "confirmed": "yes"}
    staff.post(f"/cells/b{ENTRIES}", {**chosen, "reason": "tried"})
    [line] = LogEntry.objects.all()
    assert line.object_repr.endswith(" in cell b")
    way = staff.get(str(line.get_admin_url()))
    assert way.headers["Location"] == f"/cells/b{ENTRIES}{entry}/change/"
    assert staff.get(way.headers["Location"]).status_code == 200

    with cells.on(cells.every()["a"]):
        [other] = dead_letter_in("a", 1)
        DeadLetter.objects.filter(id=other).update(id=entry)
    assert "tried" in text_of(staff, f"/cells/b{ENTRIES}{entry}/history/")
    assert "tried" not in text_of(staff, f"{ENTRIES}{entry}/history/")


@pytest.mark.parametrize("number", [".b", "x.b", "1.c", "1.", "1.b.b"])
def test_what_the_log_names_no_row_by_leads_nowhere(staff: Client, number: str) -> None:
    assert staff.get(f"{ENTRIES}{number}/change/").status_code in (302, 404)


def test_what_the_log_says_of_a_feed_leads_to_the_cell_of_its_user(staff: Client) -> None:
    user = readers_of("b")[9]
    staff.post(f"/cells/b/admin/feeds/feed/{user}/inspect/", {"action": "verify"})
    [line] = LogEntry.objects.all()
    way = staff.get(str(line.get_admin_url()))
    assert way.headers["Location"] == f"/cells/b/admin/feeds/feed/{user}/change/"


def test_the_pipeline_page_shows_each_cell_also_one_that_stands_still(
    two: TwoCells, staff: Client
) -> None:
    dead_letter_in("b", 1)
    page = text_of(staff, PIPELINE)
    assert [f'data-cell="{name}"' in page for name in ("a", "b")] == [True, True]
    assert f'href="/cells/b{ENTRIES}?group=' in page
    two.send(signal.SIGSTOP)
    try:
        found = context_of(staff, PIPELINE)["cells"]
    finally:
        two.send(signal.SIGCONT)
    assert [one["rates"].ok for one in found] == [True, False]
