"""The admin's login: who keeps guessing is locked out for a while, and every failure is a line of
the log.

django-axes counts failures in PostgreSQL, by user name and address together, so that nobody far
away locks an operator out. Nothing here is asked for a request of the API.
"""

from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

import structlog
from axes.handlers.database import AxesDatabaseHandler
from django.conf import settings
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

MAX_USERNAME_CHARS = 150

log = structlog.get_logger(__name__)


class Attempts(AxesDatabaseHandler):  # type: ignore[misc]
    """Counts failures as django-axes does, and logs each in one line."""

    def user_login_failed(
        self,
        sender: Any,
        credentials: dict[str, Any],
        request: HttpRequest | None = None,
        **kwargs: Any,
    ) -> None:
        was_locked_out = getattr(request, "axes_locked_out", False)
        super().user_login_failed(sender, credentials, request, **kwargs)
        if request is None:
            return
        if was_locked_out:
            event = "login_refused"
        elif request.axes_locked_out:  # type: ignore[attr-defined]
            event = "login_locked_out"
        else:
            event = "login_failed"
        log.warning(
            event,
            username=username(request, credentials),
            address=request.axes_ip_address,  # type: ignore[attr-defined]
            failures=request.axes_failures_since_start,  # type: ignore[attr-defined]
        )


def username(request: HttpRequest, credentials: dict[str, Any] | None) -> str:
    """Return the name that someone wants to log in with, as far as a name of ours can be long."""
    name = (credentials or {}).get("username") or request.POST.get("username", "")
    return str(name)[:MAX_USERNAME_CHARS].replace("\0", "")


def client_address(request: HttpRequest) -> str | None:
    """Return the address of whoever sent the request; of IPv6 the network, of which anybody has
    2^64 addresses.

    `X-Forwarded-For` is what a client says, but for the last `TRUSTED_PROXIES` entries, each added
    by one of ours.
    """
    addresses = [request.META.get("REMOTE_ADDR", "")]
    if settings.TRUSTED_PROXIES:
        forwarded = request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")
        addresses = [*forwarded[-settings.TRUSTED_PROXIES :][:1], *addresses]
    for text in addresses:
        try:
            address = ip_address(text.strip())
        except ValueError:
            continue
        if isinstance(address, IPv6Address):
            return str(ip_network((address, 64), strict=False).network_address)
        return str(address)
    return None


def locked_out(
    request: HttpRequest, _response: HttpResponse, _credentials: dict[str, Any] | None
) -> HttpResponse:
    """Answer the attempts of who is locked out."""
    seconds = int(settings.AXES_COOLOFF_TIME.total_seconds())
    context = {
        **admin.site.each_context(request),
        "title": "Too many attempts",
        "minutes": seconds // 60,
    }
    answer = render(request, "admin/locked_out.html", context, status=429)
    answer["Retry-After"] = str(seconds)
    return answer
