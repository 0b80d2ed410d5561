"""Numbers as people read them."""

from django import template

register = template.Library()


@register.filter
def thousands(number: int) -> str:
    """1234567 → 1,234,567"""
    return f"{number:,}"


@register.filter
def seconds(duration: float) -> str:
    """0.0123 → 12.3 ms, 12.3 → 12.3 s, 700 → 12 min"""
    if duration < 1:
        return f"{1_000 * duration:.1f} ms"
    return f"{duration:.1f} s" if duration < 120 else f"{duration / 60:.0f} min"
