from django.contrib import admin
from django.urls import include, path, register_converter
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

from feedsite import pipeline_page, probes
from feedsite.outcome_view import EventView
from posts.converters import IdConverter

register_converter(IdConverter, "id")

admin.site.site_header = admin.site.site_title = "Feed backend"
admin.site.index_template = "admin/start.html"

urlpatterns = [
    path("", include("feeds.urls")),
    path("", include("posts.urls")),
    path("events/<id:event_id>", EventView.as_view(), name="event"),
    path("healthz", probes.healthz, name="healthz"),
    path("readyz", probes.readyz, name="readyz"),
    path("metrics", probes.metrics, name="metrics"),
    path("schema/", SpectacularAPIView.as_view(), name="schema"),
    path("docs/", SpectacularSwaggerView.as_view(url_name="schema"), name="docs"),
    path("admin/pipeline/", admin.site.admin_view(pipeline_page.page), name="pipeline"),
    path("admin/", admin.site.urls),
]

handler400 = "feedsite.api.bad_request"
handler404 = "feedsite.api.not_found"
handler500 = "feedsite.api.server_error"
