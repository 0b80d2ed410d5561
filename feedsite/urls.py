from typing import Any

from django.contrib import admin
from django.urls import include, path, register_converter
from django.views.decorators.http import require_safe
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularSwaggerSplitView

from feedsite import pipeline_page, probes
from feedsite.outcome_view import EventView
from feedsite.schema_view import SchemaView
from posts.converters import IdConverter

register_converter(IdConverter, "id")

admin.site.site_header = admin.site.site_title = "Feed backend"
# The lists need the width, and the start page names all there is.
admin.site.enable_nav_sidebar = False
admin.site.index_template = "admin/start.html"


def _to(view_name: str) -> Any:
    # By name, so that it stays on the pages about a cell.
    return RedirectView.as_view(pattern_name=view_name, query_string=True)


urlpatterns = [
    path("", include("feeds.urls")),
    path("", include("posts.urls")),
    path("events/<id:event_id>", EventView.as_view(), name="event"),
    path("healthz", probes.healthz, name="healthz"),
    path("readyz", probes.readyz, name="readyz"),
    path("metrics", probes.metrics, name="metrics"),
    path("schema/", SchemaView.as_view(), name="schema"),
    # Its script is a file of its own, as the content security policy wants it.
    path(
        "docs/", require_safe(SpectacularSwaggerSplitView.as_view(url_name="schema")), name="docs"
    ),
    path("", _to("docs")),
    path("docs", _to("docs")),
    path("schema", _to("schema")),
    path("admin", _to("admin:index")),
    path("favicon.ico", RedirectView.as_view(url="/static/feedsite/favicon.svg")),
    path("admin/pipeline/", admin.site.admin_view(pipeline_page.page), name="pipeline"),
    path("admin/", admin.site.urls),
]

handler400 = "feedsite.errors.bad_request"
handler403 = "feedsite.errors.not_allowed"
handler404 = "feedsite.errors.not_found"
handler500 = "feedsite.errors.server_error"
