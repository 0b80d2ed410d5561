"""Showing bytes from Kafka to people, whatever they are."""

import base64
from collections.abc import Sequence

import orjson

SHOWN_BYTES = 20_000


def pretty(value: bytes | memoryview | None) -> str:
    """Return JSON indented, other UTF-8 as it is, anything else as a hex dump; long values are cut,
    and say so.
    """
    if value is None:
        return "(no value)"
    raw = bytes(value)
    text = _text(raw)
    if len(text) <= SHOWN_BYTES:
        return text
    return f"{text[:SHOWN_BYTES]}\n… cut here; {len(raw)} bytes in all"


def headers(pairs: Sequence[tuple[str, str | None]]) -> str:
    """Return stored headers, pairs of name and base64 or null, a line each."""
    return "\n".join(f"{name}: {_header(value)}" for name, value in pairs)


def _header(value: str | None) -> str:
    return (
        "(no value)"
        if value is None
        else base64.b64decode(value).decode("utf-8", "backslashreplace")
    )


def _text(raw: bytes) -> str:
    try:
        return orjson.dumps(orjson.loads(raw), option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONDecodeError:
        pass
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return _hex_dump(raw[:SHOWN_BYTES])


def _hex_dump(raw: bytes) -> str:
    lines = []
    for start in range(0, len(raw), 16):
        row = raw[start : start + 16]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{start:08x}  {row.hex(' '):<47}  {shown}")
    return "\n".join(lines)
