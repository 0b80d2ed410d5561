"""What pages of the admin show of cells."""

from typing import Any

from django import template
from django.db import DatabaseError

from eventbus import cell_pages
from eventbus.cell_pages import Place
from eventbus.cells import on
from eventbus.database.deadline import answer_within
from eventbus.watch import pipeline
from feedsite.pipeline_page import ASK_SECONDS

register = template.Library()


@register.simple_tag(takes_context=True)
def places_of_cells(context: Any) -> list[tuple[Place, str]]:
    """Return where this page is found about each cell, and how many dead letters wait there; none
    where there is but one cell.
    """
    places = cell_pages.places(context["request"])
    return [(place, _waiting(place)) for place in places]


def _waiting(place: Place) -> str:
    try:
        with on(place.cell), answer_within(ASK_SECONDS):
            return pipeline.waiting()
    except DatabaseError as error:
        return f"unknown, PostgreSQL gave no answer ({type(error).__name__}):"
