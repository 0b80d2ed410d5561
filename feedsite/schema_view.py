"""`GET /schema/`: the OpenAPI document."""

from collections.abc import Iterable
from typing import Any

from drf_spectacular.views import SpectacularAPIView
from rest_framework.exceptions import NotAcceptable
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.request import Request


class WhatIsAsked(DefaultContentNegotiation):
    """Goes by `?format=` or Accept, and answers YAML to who wants neither of the two."""

    def select_renderer(
        self, request: Request, renderers: Iterable[Any], format_suffix: str | None = None
    ) -> tuple[Any, str]:
        choice = list(renderers)
        try:
            found: tuple[Any, str] = super().select_renderer(request, choice, format_suffix)
        except NotAcceptable:
            return choice[0], choice[0].media_type
        return found


class SchemaView(SpectacularAPIView):
    """The document, as YAML or JSON."""

    content_negotiation_class = WhatIsAsked
