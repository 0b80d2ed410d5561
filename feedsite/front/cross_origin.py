"""What the event loop tells browsers on pages of other sites (CORS): what the middleware would, which
has the rules.
"""

import re

from corsheaders.middleware import CorsMiddleware
from django.conf import settings
from django.http import HttpRequest, HttpResponse

from feedsite.front.http import HeaderList, Request

ASKED_METHOD = "access-control-request-method"


class CrossOrigin:
    """Headers for answers that are not Django's.

    They go by the request alone and are no part of what is cached: no page ever tells one origin
    what was meant for another.
    """

    def __init__(self) -> None:
        self._is_on = bool(settings.CORS_ALLOWED_ORIGINS)
        self._paths = re.compile(settings.CORS_URLS_REGEX)
        # Of others, whoever asks makes up the name: they are not kept.
        known = [None, *settings.CORS_ALLOWED_ORIGINS]
        self._known = {origin: _headers("GET", origin) for origin in known}

    def headers(self, request: Request) -> HeaderList:
        """Return the headers that make the answer readable, where the origin is allowed."""
        if not self._is_on or not self._paths.match(request.path):
            return []
        origin = _origin(request)
        known = self._known.get(origin)
        return known if known is not None else _headers("GET", origin)

    def preflight(self, request: Request) -> HeaderList | None:
        """Return the headers of the answer to a preflight request; None if it is none."""
        if not self._is_on or request.method != "OPTIONS":
            return None
        if ASKED_METHOD not in request.headers or not self._paths.match(request.path):
            return None
        return _headers("OPTIONS", _origin(request))


def _origin(request: Request) -> str | None:
    # Several are none, as WSGI joins them.
    return ",".join(request.headers.get_all("origin")) or None


def _headers(method: str, origin: str | None) -> HeaderList:
    request = HttpRequest()
    request.method = method
    request.path_info = "/posts"
    if origin is not None:
        request.META["HTTP_ORIGIN"] = origin
    response = HttpResponse()
    del response["Content-Type"]
    middleware = CorsMiddleware(lambda _request: response)
    middleware.add_response_headers(request, response)
    return [(name.lower(), value) for name, value in response.items()]
