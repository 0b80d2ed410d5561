"""The post API."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson
from django.http import HttpResponse
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.exceptions import NotFound, ParseError, PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from eventbus.envelope import format_time
from eventbus.exceptions import IdempotencyKeyReused
from eventbus.ids import idempotency
from eventbus.ids.idempotency import Ids
from eventbus.telemetry import correlation
from posts import pagination, rates, services, visibility
from posts.errors import Gone, Unprocessable
from posts.events import MAX_CONTENT_CHARS, PostCreated
from posts.models import Post, PostRow
from posts.principal import principal
from posts.rates import WriteRate
from posts.schemas import AcceptedPost, AcceptedSchema, NewPost, PostList, PostSchema

_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}")

IDEMPOTENCY = OpenApiParameter(
    "Idempotency-Key",
    str,
    OpenApiParameter.HEADER,
    description="the same key and body: the same answer, done once",
)
PAGING = [
    OpenApiParameter("limit", int, description="1 to 100, default 20"),
    OpenApiParameter("cursor", str, description="from `next` or `previous` of another page"),
]


class PostsView(APIView):
    throttle_classes = [WriteRate]

    @extend_schema(request=NewPost, parameters=[IDEMPOTENCY], responses={202: AcceptedPost})
    def post(self, request: Request) -> HttpResponse:
        """Publish a post. 202 once Kafka has it; it reaches the followers' feeds a moment later."""
        if request.META.get("CONTENT_LENGTH") in (None, "", "0"):
            raise ParseError("The body is empty.", code="malformed_json")
        content = content_of(request.data)
        post = services.create_post(
            author_id=principal(request).user_id,
            content=content,
            ids=write_ids(request, content),
            headers=event_headers(request),
        )
        return accepted(request, post.event_id, **accepted_post_json(post))


class PostView(APIView):
    throttle_classes = [WriteRate]

    @extend_schema(responses={200: PostSchema})
    def get(self, request: Request, post_id: int) -> Response:
        """Return a post; 410 when its author has deleted it, 404 when a block is between the author
        and the reader.
        """
        post = _find(request, post_id)
        if post.deleted_event_id is not None:
            raise Gone
        created_at = format_time(post.created_at)
        return Response(post_json(PostRow(post.id, post.author_id, post.content, created_at)))

    @extend_schema(request=None, parameters=[IDEMPOTENCY], responses={202: AcceptedSchema})
    def delete(self, request: Request, post_id: int) -> HttpResponse:
        """Delete one's own post. 202 once Kafka has the deletion."""
        if _find(request, post_id).author_id != principal(request).user_id:
            raise PermissionDenied("Only its author can delete a post.", code="not_the_author")
        deletion = services.delete_post(
            author_id=principal(request).user_id,
            post_id=post_id,
            ids=write_ids(request),
            headers=event_headers(request),
        )
        return accepted(request, deletion.event_id, id=str(post_id))


class UserPostsView(APIView):
    @extend_schema(parameters=PAGING, responses={200: PostList})
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


def post_json(row: PostRow) -> dict[str, str]:
    """Return the JSON form of a post."""
    return {
        "id": str(row.id),
        "author_id": str(row.author_id),
        "content": row.content,
        "created_at": row.created_at,
    }


def accepted_post_json(post: PostCreated) -> dict[str, str]:
    """Return what the answer to a new post says of it."""
    created_at = format_time(post.created_at)
    return post_json(PostRow(post.post_id, post.author_id, post.content, created_at))


def accepted(request: Request, event_id: int, **fields: str) -> HttpResponse:
    """Return the 202 of a write whose event Kafka has acknowledged."""
    # Not REST framework's Response: what it adds, negotiation and a template engine's hooks, costs
    # a tenth of a write.
    headers = {"Location": event_address(event_id), **rates.headers_of(request)}
    body = accepted_body(event_id, fields)
    return HttpResponse(body, content_type="application/json", status=202, headers=headers)


def accepted_body(event_id: int, fields: dict[str, str]) -> bytes:
    """Return the body of a 202."""
    return orjson.dumps({"event_id": str(event_id), **fields})


def event_address(event_id: int) -> str:
    """Return where to ask what became of an event."""
    return f"/events/{event_id}"


def list_response(
    request: Request, page: pagination.Page, to_json: Callable[[Any], dict[str, str]]
) -> Response:
    """Return a page in Django REST framework's shape of a list."""
    return Response(
        {
            "results": [to_json(row) for row in page.rows],
            "next": pagination.link(request, page.next),
            "previous": pagination.link(request, page.previous),
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

    Raises `ParseError` on a key that is none, `Unprocessable` on one used for another request.
    """
    key = request.META.get("HTTP_IDEMPOTENCY_KEY")
    if key is None:
        return idempotency.fresh()
    if not _IDEMPOTENCY_KEY.fullmatch(key):
        raise ParseError(
            "Idempotency-Key must be 1 to 255 printable ASCII characters.",
            code="invalid_idempotency_key",
        )
    try:
        return idempotency.reserve(
            principal(request).user_id, key, f"{request.method} {request.path}\n{body}"
        )
    except IdempotencyKeyReused as error:
        raise Unprocessable(str(error), code="idempotency_key_reused") from error


def content_of(body: object) -> str:
    """Return the content of a new post whose JSON is `body`. Raises `Unprocessable`."""
    if not isinstance(body, dict):
        raise Unprocessable("The body must be a JSON object.", code="not_an_object")
    content = body.get("content")
    if not isinstance(content, str):
        raise Unprocessable("content must be a string.", code="content_required")
    content = content.strip()
    if not content:
        raise Unprocessable("content must not be empty.", code="content_empty")
    if len(content) > MAX_CONTENT_CHARS:
        raise Unprocessable(
            f"content must not exceed {MAX_CONTENT_CHARS} characters.", code="content_too_long"
        )
    if "\0" in content:
        raise Unprocessable("content must not contain the NUL character.", code="content_has_nul")
    return content


def _find(request: Request, post_id: int) -> Post:
    """Return the post, unless the asking user is to see nothing of its author. Raises
    `NotFound`.
    """
    post = Post.objects.filter(id=post_id).first()
    if post is None or visibility.is_hidden(principal(request), post.author_id):
        raise NotFound("There is no such post (yet).", code="post_not_found")
    return post
