"""System checks of the deployment."""

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured

# With cells each has its own.
IN_THE_MAP = ("DATABASE_URL", "REDIS_URL")


@register
def servers_are_known(**_kwargs: Any) -> list[CheckMessage]:
    """Without addresses no command can do its work: say so in one sentence instead of a
    traceback.
    """
    missing = [
        name
        for name in ("DATABASE_URL", "REDIS_URL", "KAFKA_BOOTSTRAP_SERVERS")
        if not settings.ENV[name] and not (settings.FEED_CELLS.has_names and name in IN_THE_MAP)
    ]
    if not missing:
        return []
    hint = "Run `python manage.py embedded start`, or set " + " and ".join(missing) + "."
    return [Error("The embedded servers were never started here.", hint=hint, id="feedsite.E001")]


@register(Tags.security, deploy=True)
def tokens_are_for_this_site(**_kwargs: Any) -> list[CheckMessage]:
    """A provider signs the tokens of all its clients with the same keys: only the audience tells
    whose they are.
    """
    messages: list[CheckMessage] = []
    if not tokens_have_an_audience():
        hint = "Set JWT_AUDIENCE to the `aud` that the provider gives to tokens for this API."
        messages.append(
            CheckWarning(
                "Tokens that the provider issued for others are taken.",
                hint=hint,
                id="feedsite.W001",
            )
        )
    if settings.JWT_JWKS_URL.startswith("http://"):
        hint = "Use https: whoever is on the way could put keys of their own into the set."
        messages.append(
            CheckWarning("JWT_JWKS_URL is fetched without TLS.", hint=hint, id="feedsite.W002")
        )
    return messages


@register(Tags.security, deploy=True)
def hosts_are_named(**_kwargs: Any) -> list[CheckMessage]:
    """Links in lists have the host that the request names, so it must be one of ours."""
    everywhere = [host for host in settings.ALLOWED_HOSTS if host in ("*", ".")]
    if not everywhere:
        return []
    hint = "Name the hosts, as in DJANGO_ALLOWED_HOSTS=feeds.example."
    return [CheckWarning("DJANGO_ALLOWED_HOSTS lets any Host pass.", hint=hint, id="feedsite.W003")]


@register(Tags.security, deploy=True)
def the_map_can_change(**_kwargs: Any) -> list[CheckMessage]:
    """A process that has the map of cells in its environment goes by it to its end."""
    if len(settings.FEED_CELLS.places) == 1 or settings.FEED_CELLS_FILE is not None:
        return []
    hint = (
        "Put it into a file, which every process looks at. Or start all of them anew for each "
        "change, before the next step: until then they mint ids, and ask cells, by the old map."
    )
    return [
        CheckWarning(
            "FEED_CELLS is the map itself, so processes notice no change of it.",
            hint=hint,
            id="feedsite.W004",
        )
    ]


def tokens_have_an_audience() -> bool:
    """Return whether tokens of other keys than our own must name this site."""
    return bool(settings.JWT_AUDIENCE) or not (settings.JWT_JWKS_URL or settings.JWT_PUBLIC_KEY)


def require_keys() -> None:
    """Raise `ImproperlyConfigured` when no token or session could be verified: then the API must
    not start.
    """
    if not (settings.JWT_JWKS_URL or settings.JWT_PUBLIC_KEY or settings.JWT_SIGNING_KEY):
        raise ImproperlyConfigured(
            "Set JWT_SIGNING_KEY, JWT_PUBLIC_KEY or JWT_JWKS_URL: with servers of your own no default secret is used."
        )
    if not settings.ENV["DJANGO_SECRET_KEY"]:
        raise ImproperlyConfigured(
            "Set DJANGO_SECRET_KEY: with servers of your own no default secret is used."
        )
