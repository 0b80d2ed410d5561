"""Small bar charts as inline SVG: no script, no file of their own, the colour of the text around
them.
"""

from collections.abc import Sequence

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString


def bars(
    counts: Sequence[int], *, title: str, description: str = "", step: int = 5, height: int = 20
) -> SafeString:
    """Return a bar for each of `counts`, the highest `height` units high; for screen readers a
    title and description.

    A count above 0 is always to be seen.
    """
    top = max(1, *counts)
    drawn = format_html_join(
        "",
        '<rect x="{}" y="{}" width="{}" height="{}"/>',
        (
            (step * place, height - bar, step - 1, bar)
            for place, count in enumerate(counts)
            if count and (bar := max(1, round(height * count / top)))
        ),
    )
    width = step * len(counts)
    return format_html(
        '<svg class="bars" role="img" viewBox="0 0 {} {}" width="{}" height="{}" fill="currentColor" '
        'preserveAspectRatio="none"><title>{}</title><desc>{}</desc>{}</svg>',
        width,
        height,
        width,
        height,
        title,
        description,
        drawn,
    )
