"""Who is asking, as every view sees it."""

from dataclasses import dataclass
from typing import cast

from rest_framework.request import Request


@dataclass(frozen=True, slots=True)
class Principal:
    """The user a token was issued to; there is no user table, the token is all there is."""

    user_id: int
    scopes: frozenset[str]
    is_authenticated: bool = True


def principal(request: Request) -> Principal:
    """Return who is asking; the view's permissions have made sure that someone is."""
    return cast(Principal, request.user)
