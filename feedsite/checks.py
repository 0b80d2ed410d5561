"""System checks of the deployment."""

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register


@register
def servers_are_known(**_kwargs: Any) -> list[CheckMessage]:
    """Without addresses no command can do its work: say so in one sentence instead of a traceback."""
    missing = [name for name in ("DATABASE_URL", "REDIS_URL", "KAFKA_BOOTSTRAP_SERVERS") if not settings.ENV[name]]
    if not missing:
        return []
    hint = "Run `python manage.py embedded start`, or set " + " and ".join(missing) + "."
    return [Error("The embedded servers were never started here.", hint=hint, id="feedsite.E001")]
