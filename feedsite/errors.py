"""Errors that no view answers: pages for people on the pages for people, JSON everywhere else."""

import sys

from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string

from eventbus import retry
from feedsite import api

PEOPLES = ("/admin", "/docs", "/cells/")
TITLES = {
    400: "This cannot be answered",
    403: "Not allowed",
    404: "There is nothing here",
    413: "Too much was sent",
    503: "Not at the moment",
}


def is_for_people(path: str) -> bool:
    """Tell whether people look at `path` in a browser."""
    return path.startswith(PEOPLES)


def page(status: int, detail: str) -> str:
    """Return a page that says what is wrong; asks nothing of any server, which may be what is
    wrong.
    """
    title = TITLES.get(status, "Something went wrong")
    context = {"title": title, "detail": detail, "site_header": "Feed backend"}
    return render_to_string("admin/error.html", context)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer what Django itself refuses, such as a form with too many fields."""
    if not is_for_people(request.path_info):
        return api.bad_request(request, exception)
    return HttpResponse(page(400, "The request is not one that this page makes."), status=400)


def not_allowed(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer who is known but may not do this."""
    if not is_for_people(request.path_info):
        return api.not_allowed(request, exception)
    detail = "Your account lacks the permission for this."
    return HttpResponse(page(403, detail), status=403)


def form_expired(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Answer a form without the token of this session (`CSRF_FAILURE_VIEW`)."""
    if not is_for_people(request.path_info):
        return api.not_allowed(request, PermissionError(reason))
    detail = "The form was not sent from a page of this session. Open the page again and repeat it."
    return HttpResponse(page(403, detail), status=403)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer paths no view has."""
    if not is_for_people(request.path_info):
        return api.not_found(request, exception)
    return HttpResponse(page(404, "No page has this address."), status=404)


def server_error(request: HttpRequest) -> HttpResponse:
    """Answer what no view foresaw; the traceback is in the log."""
    if not is_for_people(request.path_info):
        return api.server_error(request)
    error = sys.exc_info()[1]
    if error is not None and (retry.is_unreachable(error) or retry.is_transient(error)):
        detail = "The database cannot answer. Try again in a moment."
        return HttpResponse(page(503, detail), status=503, headers={"Retry-After": "1"})
    return HttpResponse(page(500, "What exactly is in the log."), status=500)
