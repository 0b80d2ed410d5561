"""The post API."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import orjson
from django.http import HttpResponse
from drf_spectacular.utils import OpenApiParameter
from rest_framework.exceptions import NotFound, ParseError, PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from eventbus.envelope import format_time
from eventbus.event import Fields
from eventbus.ids import idempotency
from eventbus.ids.idempotency import Ids
from eventbus.ids.snowflake import id_in
from eventbus.telemetry import correlation
from posts import pagination, rates, services, visibility
from posts.data import DataRefused, fragment, text_of
from posts.documented import ID_PATTERN, PAGING, PAGING_ERRORS, documented
from posts.errors import Gone, Unprocessable
from posts.events import MAX_CONTENT_CHARS, PostCreated, PostEdited
from posts.models import FoundPost, Post, PostRow
from posts.principal import principal
from posts.rates import WriteRate
from posts.schemas import (
    AcceptedDeletion,
    AcceptedEdit,
    AcceptedPost,
    EditPost,
    NewPost,
    PostList,
    PostsByIdSchema,
    PostSchema,
)

MAX_IDS = 100
_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}")

CONTENT_ERRORS = ["content_required", "content_empty", "content_too_long", "content_has_nul"]
DATA_ERRORS = [
    "data_not_an_object",
    "data_too_large",
    "data_too_deep",
    "data_has_nul",
    "data_number",
    "duplicate_key",
]
IDS_ERRORS = ["ids_required", "too_many_ids", "invalid_ids"]
IDS = OpenApiParameter(
    "ids",
    {
        "type": "array",
        "items": {"type": "string", "pattern": ID_PATTERN},
        "minItems": 1,
        "maxItems": MAX_IDS,
    },
    required=True,
    explode=False,
    description="up to 100 post ids with commas between",
)


class Written(NamedTuple):
    """What a client has written: text, and data as compact JSON."""

    content: str
    data: str | None

    @property
    def fingerprint(self) -> str:
        """Return what tells it from anything else under the same `Idempotency-Key`."""
        # Without data the content alone, as it was before there was any.
        return self.content if self.data is None else f"{self.content}\0{self.data}"


class Edited(NamedTuple):
    """What a client has written of a post anew."""

    content: str | None  # None: it stays
    changes_data: bool
    data: str | None

    @property
    def fields(self) -> Fields:
        """Return what is replaced, for orjson."""
        fields: dict[str, Any] = {}
        if self.content is not None:
            fields["content"] = self.content
        if self.changes_data:
            fields["data"] = fragment(self.data)
        return fields

    @property
    def fingerprint(self) -> str:
        return orjson.dumps(self.fields).decode()


class PostsView(APIView):
    throttle_classes = [WriteRate]

    @documented(
        "read_posts",
        {200: PostsByIdSchema},
        parameters=[IDS],
        errors=[*IDS_ERRORS, "throttled"],
    )
    def get(self, request: Request) -> Response:
        """Return up to 100 posts by their ids: an entry each, in the order they were asked for.

        Instead of a post that was deleted, or that there is not (yet), its entry has a `state`. One
        whose author and reader a block is between is as one that there is not. Counts as so many
        lookups.
        """
        ids = ids_of(request)
        rates.charge_lookups(request, len(ids))
        posts = Post.objects.find(ids)
        authors = {post.row.author_id for post in posts.values()}
        hidden = visibility.hidden_among(principal(request), authors)
        posts = {key: post for key, post in posts.items() if post.row.author_id not in hidden}
        entries = [_entry(post_id, posts.get(post_id)) for post_id in ids]
        return Response({"results": entries}, headers=rates.headers_of(request))

    @documented(
        "create_post",
        {202: AcceptedPost},
        body=NewPost,
        errors=[*CONTENT_ERRORS, *DATA_ERRORS],
    )
    def post(self, request: Request) -> HttpResponse:
        """Publish a post. 202 once Kafka has it; it reaches the followers' feeds a moment later."""
        written = written_in(json_of(request))
        post = services.create_post(
            author_id=principal(request).user_id,
            content=written.content,
            data=written.data,
            ids=write_ids(request, written.fingerprint),
            headers=event_headers(request),
        )
        return accepted(request, post.event_id, **accepted_post_json(post))


class PostView(APIView):
    throttle_classes = [WriteRate]

    @documented("read_post", {200: PostSchema}, errors=["post_not_found", "gone", "throttled"])
    def get(self, request: Request, post_id: int) -> Response:
        """Return a post; 410 when its author has deleted it, 404 when a block is between the author
        and the reader. Counts as one lookup.
        """
        rates.charge_lookups(request, 1)
        post = _find(request, post_id)
        if post.is_deleted:
            raise Gone
        return Response(post_json(post.row), headers=rates.headers_of(request))

    @documented(
        "edit_post",
        {202: AcceptedEdit},
        body=EditPost,
        errors=[
            "not_the_author",
            "post_not_found",
            "gone",
            "nothing_to_edit",
            *CONTENT_ERRORS,
            *DATA_ERRORS,
        ],
    )
    def patch(self, request: Request, post_id: int) -> HttpResponse:
        """Edit one's own post: what the body names is replaced. 202 once Kafka has the edit."""
        found = _find(request, post_id)
        if found.row.author_id != principal(request).user_id:
            raise PermissionDenied("Only its author can edit a post.", code="not_the_author")
        if found.is_deleted:
            raise Gone
        edited = edited_in(json_of(request), found.row)
        edit = PostEdited(
            event_id=write_ids(request, edited.fingerprint).event_id,
            post_id=post_id,
            author_id=found.row.author_id,
            content=edited.content,
            changes_data=edited.changes_data,
            data=edited.data,
        )
        services.edit_post(edit, event_headers(request))
        edited_at = format_time(edit.edited_at)
        return accepted(
            request, edit.event_id, id=str(post_id), edited_at=edited_at, **edited.fields
        )

    @documented("delete_post", {202: AcceptedDeletion}, errors=["not_the_author", "post_not_found"])
    def delete(self, request: Request, post_id: int) -> HttpResponse:
        """Delete one's own post. 202 once Kafka has the deletion."""
        if _find(request, post_id).row.author_id != principal(request).user_id:
            raise PermissionDenied("Only its author can delete a post.", code="not_the_author")
        deletion = services.delete_post(
            author_id=principal(request).user_id,
            post_id=post_id,
            ids=write_ids(request),
            headers=event_headers(request),
        )
        return accepted(request, deletion.event_id, id=str(post_id))


class UserPostsView(APIView):
    @documented("list_user_posts", {200: PostList}, parameters=PAGING, errors=PAGING_ERRORS)
    def get(self, request: Request, user_id: int) -> Response:
        """List a user's posts, newest first; none where a block is between the two."""
        hidden = visibility.is_hidden(principal(request), user_id)
        page = pagination.paginate(
            pagination.nothing if hidden else partial(Post.objects.page_of, user_id),
            lambda row: row.id,
            pagination.position_of(request),
            pagination.limit_of(request),
        )
        return list_response(request, page, post_json)


def post_json(row: PostRow) -> Fields:
    """Return the JSON form of a post, for orjson: its data goes into it as PostgreSQL wrote it."""
    return {
        "id": str(row.id),
        "author_id": str(row.author_id),
        "content": row.content,
        "data": fragment(row.data),
        "created_at": row.created_at,
        "edited_at": row.edited_at,
    }


def accepted_post_json(post: PostCreated) -> Fields:
    """Return what the answer to a new post says of it."""
    created_at = format_time(post.created_at)
    row = PostRow(post.post_id, post.author_id, post.content, post.data, created_at, None)
    return post_json(row)


def accepted(request: Request, event_id: int, **fields: Any) -> HttpResponse:
    """Return the 202 of a write whose event Kafka has acknowledged."""
    # Not REST framework's Response: what it adds, negotiation and a template engine's hooks, costs
    # a tenth of a write.
    headers = {"Location": event_address(event_id), **rates.headers_of(request)}
    body = accepted_body(event_id, fields)
    return HttpResponse(body, content_type="application/json", status=202, headers=headers)


def accepted_body(event_id: int, fields: Fields) -> bytes:
    """Return the body of a 202."""
    return orjson.dumps({"event_id": str(event_id), **fields})


def event_address(event_id: int) -> str:
    """Return where to ask what became of an event."""
    return f"/events/{event_id}"


def list_response(
    request: Request, page: pagination.Page, to_json: Callable[[Any], Fields]
) -> Response:
    """Return a page in Django REST framework's shape of a list."""
    return Response(
        {
            "results": [to_json(row) for row in page.rows],
            "next": pagination.link(request, page.next),
            "previous": pagination.link(request, page.previous),
            "next_cursor": page.next.encode() if page.next else None,
            "previous_cursor": page.previous.encode() if page.previous else None,
        }
    )


def event_headers(request: Request) -> list[tuple[str, bytes]]:
    """Return the Kafka headers that carry the request's id and its W3C trace context on."""
    meta = request.META
    return correlation.kafka_headers(
        meta.get("HTTP_X_REQUEST_ID", ""),
        meta.get("HTTP_TRACEPARENT", ""),
        meta.get("HTTP_TRACESTATE", ""),
    )


def write_ids(request: Request, body: str = "") -> Ids:
    """Return the ids of a write: those reserved under its `Idempotency-Key`, or new ones without
    one.

    Raises `ParseError` on a key that is none, `IdempotencyKeyReused` on one used for another
    request.
    """
    key = _idempotency_key(request)
    if key is None:
        return idempotency.fresh()
    return idempotency.reserve(principal(request).user_id, key, _said_by(request, body))


def write_run(request: Request, body: str, count: int) -> range:
    """Return consecutive ids for the `count` events of a request, which must depend on nothing but
    its body. Raises as `write_ids`.
    """
    key = _idempotency_key(request)
    if key is None:
        return idempotency.fresh_run(count)
    said = _said_by(request, body)
    return idempotency.reserve_run(principal(request).user_id, key, said, count)


def _idempotency_key(request: Request) -> str | None:
    key: str | None = request.META.get("HTTP_IDEMPOTENCY_KEY")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise ParseError(
            "Idempotency-Key must be 1 to 255 printable ASCII characters.",
            code="invalid_idempotency_key",
        )
    return key


def _said_by(request: Request, body: str) -> str:
    return f"{request.method} {request.path}\n{body}"


def json_of(request: Request) -> object:
    """Return what the JSON in the body says. Raises `ParseError`, also for an empty body."""
    if request.META.get("CONTENT_LENGTH") in (None, "", "0"):
        raise ParseError("The body is empty.", code="malformed_json")
    body: object = request.data
    return body


def written_in(body: object) -> Written:
    """Return what the JSON of a new post says. Raises `Unprocessable`."""
    body = object_in(body)
    if body.get("data") is None:
        return Written(_content_in(body), None)
    data = _data_in(body)
    if "content" not in body:
        return Written("", data)
    return Written(_content_in(body, may_be_empty=True), data)


def edited_in(body: object, post: PostRow) -> Edited:
    """Return what the JSON of an edit says of `post`. Raises `Unprocessable`."""
    body = object_in(body)
    changes_data = "data" in body
    if not changes_data and "content" not in body:
        raise Unprocessable("An edit must name content or data.", code="nothing_to_edit")
    data = _data_in(body)
    has_data = data is not None if changes_data else post.data is not None
    content = None
    if "content" in body:
        content = _content_in(body, may_be_empty=has_data)
    elif not (post.content or has_data):
        raise Unprocessable("A post must keep content or data.", code="content_empty")
    return Edited(content, changes_data, data)


def object_in(body: object) -> Fields:
    """Return the JSON object that a body must be. Raises `Unprocessable`."""
    if not isinstance(body, dict):
        raise Unprocessable("The body must be a JSON object.", code="not_an_object")
    return body


def _data_in(body: Fields) -> str | None:
    """Return the data that is given, as compact JSON; null is none. Raises `Unprocessable`."""
    data = body.get("data")
    if data is None:
        return None
    try:
        return text_of(data)
    except DataRefused as error:
        raise Unprocessable(str(error), code=error.code) from error


def _content_in(body: Fields, *, may_be_empty: bool = False) -> str:
    content = body.get("content")
    if not isinstance(content, str):
        raise Unprocessable("content must be a string.", code="content_required")
    content = content.strip()
    if not (content or may_be_empty):
        raise Unprocessable("content must not be empty.", code="content_empty")
    if len(content) > MAX_CONTENT_CHARS:
        raise Unprocessable(
            f"content must not exceed {MAX_CONTENT_CHARS} characters.", code="content_too_long"
        )
    if "\0" in content:
        raise Unprocessable("content must not contain the NUL character.", code="content_has_nul")
    return content


def ids_of(request: Request) -> list[int]:
    """Return the post ids in `?ids=`, as they were asked for. Raises `ParseError`."""
    given = ",".join(request.query_params.getlist("ids"))
    if not given:
        raise ParseError("Name the posts: ids=1,2,3.", code="ids_required")
    ids = [id_in(text) for text in given.split(",", MAX_IDS)]
    if len(ids) > MAX_IDS:
        raise ParseError(f"ids must name no more than {MAX_IDS} posts.", code="too_many_ids")
    found = [post_id for post_id in ids if post_id is not None]
    if len(found) < len(ids):
        raise ParseError("ids must be post ids with commas between.", code="invalid_ids")
    return found


def _entry(post_id: int, post: FoundPost | None) -> Fields:
    if post is None:
        return {"id": str(post_id), "state": "unknown"}
    if post.is_deleted:
        return {"id": str(post_id), "state": "deleted"}
    return post_json(post.row)


def _find(request: Request, post_id: int) -> FoundPost:
    """Return the post, unless the asking user is to see nothing of its author. Raises
    `NotFound`.
    """
    post = Post.objects.find([post_id]).get(post_id)
    if post is None or visibility.is_hidden(principal(request), post.row.author_id):
        raise NotFound("There is no such post (yet).", code="post_not_found")
    return post
