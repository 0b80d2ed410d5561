"""Who may see whom users follow and what became of their events: `API_VISIBILITY`."""

from django.conf import settings

PRIVATE, PUBLIC = "private", "public"


def is_public() -> bool:
    """Tell whether everybody with a token may see them; else only the user and who has the
    scope.
    """
    return bool(settings.API_VISIBILITY == PUBLIC)
