"""Text from outside, made safe to show on a terminal, and what else commands say and ask
there."""

import unicodedata

TIME = "%Y-%m-%d %H:%M:%SZ"  # of a time in UTC, as in the admin

# Control and format characters, lone surrogates, line and paragraph separators: what moves the
# cursor, changes colours or the direction of writing, or cannot be written at all.
UNSAFE_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")


def visible(text: str, keep: str = "") -> str:
    """Return `text` with such characters written as escapes, but for those in `keep`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        _escaped(character) if _is_unsafe(character) and character not in keep else character
        for character in text
    )


def _is_unsafe(character: str) -> bool:
    return unicodedata.category(character) in UNSAFE_CATEGORIES


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def count_of(number: int, thing: str, things: str = "") -> str:
    """Return how many there are of it: 1 attempt, 2 attempts, 0 entries."""
    if number == 1:
        return f"1 {thing}"
    return f"{number} {things or thing + 's'}"


def agreed(question: str) -> bool:
    """Return what the operator says; no where there is nobody to ask."""
    try:
        return input(question).strip().lower() == "y"
    except EOFError:
        return False
