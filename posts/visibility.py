"""Who may see whom users follow and what became of their events (`API_VISIBILITY`), and who sees
nothing of whom.
"""

from collections.abc import Iterable

from django.conf import settings

from posts.models import Block
from posts.principal import Principal

PRIVATE, PUBLIC = "private", "public"
READ_ANY_FEED = "feeds:read"


def is_public() -> bool:
    """Tell whether everybody with a token may see them; else only the user and who has the
    scope.
    """
    return bool(settings.API_VISIBILITY == PUBLIC)


def hidden_among(principal: Principal, user_ids: Iterable[int]) -> set[int]:
    """Return those of the users of whom someone is to see nothing, for one has blocked the other.

    Who has the scope `feeds:read` sees everybody, and all see themselves.
    """
    others = set(user_ids) - {principal.user_id}
    if not others or READ_ANY_FEED in principal.scopes:
        return set()
    return Block.objects.among(principal.user_id, others)


def is_hidden(principal: Principal, user_id: int) -> bool:
    """Tell whether someone is to see nothing of this user; see `hidden_among`."""
    return bool(hidden_among(principal, [user_id]))
