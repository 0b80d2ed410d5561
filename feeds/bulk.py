"""Following many users by one request."""

from collections.abc import Mapping
from typing import NamedTuple

import orjson
from django.http import HttpResponse
from rest_framework.request import Request
from rest_framework.views import APIView

from eventbus.ids.snowflake import id_in
from feeds import blocks, services
from feeds.events import UserFollowed
from posts import rates
from posts.documented import documented
from posts.errors import Unprocessable
from posts.principal import principal
from posts.schemas import FollowEntries, NewFollows
from posts.views import event_headers, json_of, object_in, write_run

MAX_FOLLOWEES = 100


class Refusal(NamedTuple):
    """Why one of several is not accepted."""

    code: str
    detail: str


class FollowsView(APIView):
    @documented(
        "follow_users",
        {202: FollowEntries},
        body=NewFollows,
        errors=[
            "followee_ids_required",
            "followee_ids_empty",
            "too_many_followee_ids",
            "invalid_followee_id",
            "exceeds_write_rate",
        ],
    )
    def post(self, request: Request) -> HttpResponse:
        """Follow up to 100 users at once: an entry each, in the order they were named.

        An entry has the `event_id` of a follow that Kafka has acknowledged, or the `code` and
        `detail` of why this one was not accepted. Counts as so many writes.
        """
        follower_id = principal(request).user_id
        followee_ids = followee_ids_of(json_of(request))
        rates.charge_writes(request, len(followee_ids))
        event_ids = _event_ids(request, followee_ids)
        refused = _refused(follower_id, followee_ids)
        facts = [
            UserFollowed(event_id, follower_id, followee_id)
            for followee_id, event_id in event_ids.items()
            if followee_id not in refused
        ]
        services.follow_all(facts, headers=event_headers(request))
        entries = [_entry(followee_id, event_ids, refused) for followee_id in followee_ids]
        body = orjson.dumps({"results": entries})
        headers = rates.headers_of(request)
        return HttpResponse(body, content_type="application/json", status=202, headers=headers)


def followee_ids_of(body: object) -> list[int]:
    """Return whom the JSON `body` names, as often as it does. Raises `Unprocessable`."""
    given = object_in(body).get("followee_ids")
    if not isinstance(given, list):
        raise Unprocessable("followee_ids must be a list.", code="followee_ids_required")
    if not given:
        raise Unprocessable("followee_ids must not be empty.", code="followee_ids_empty")
    if len(given) > MAX_FOLLOWEES:
        raise Unprocessable(
            f"followee_ids must not name more than {MAX_FOLLOWEES} users.",
            code="too_many_followee_ids",
        )
    return [_user_id(number, text) for number, text in enumerate(given)]


def _user_id(number: int, text: object) -> int:
    user_id = id_in(text)
    if user_id is None:
        raise Unprocessable(
            f"followee_ids[{number}] must be a user id, a decimal string of 1 to 2^63-1.",
            code="invalid_followee_id",
        )
    return user_id


def _event_ids(request: Request, followee_ids: list[int]) -> dict[int, int]:
    """Return the id of the event for each user who is named, one for who is named twice.

    There is an id for each time somebody is named, whatever becomes of it: so a request that is
    repeated under its key finds those it had.
    """
    named = ",".join(map(str, followee_ids))
    run = write_run(request, named, len(followee_ids))
    event_ids: dict[int, int] = {}
    for followee_id, event_id in zip(followee_ids, run, strict=True):
        event_ids.setdefault(followee_id, event_id)
    return event_ids


def _refused(follower_id: int, followee_ids: list[int]) -> dict[int, Refusal]:
    """Return whom the follower cannot follow, and why."""
    refused: dict[int, Refusal] = {}
    if follower_id in followee_ids:
        refused[follower_id] = Refusal("cannot_follow_oneself", "Nobody can follow themselves.")
    for blocked in blocks.in_the_way(follower_id, followee_ids):
        refused[blocked] = Refusal("follow_blocked", blocks.IN_THE_WAY)
    return refused


def _entry(
    followee_id: int, event_ids: Mapping[int, int], refused: Mapping[int, Refusal]
) -> dict[str, str]:
    entry = {"followee_id": str(followee_id)}
    refusal = refused.get(followee_id)
    if refusal is None:
        return entry | {"event_id": str(event_ids[followee_id])}
    return entry | refusal._asdict()
