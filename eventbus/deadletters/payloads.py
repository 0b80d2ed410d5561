"""Showing bytes from Kafka to people, whatever they are."""

import base64
from collections.abc import Sequence

import orjson

SHOWN_BYTES = 20_000
# Indented, a few megabytes of small values nested deep would be gigabytes.
INDENTED_BYTES = 100_000


def pretty(value: bytes | memoryview | None) -> str:
    """Return JSON indented unless it is long, other UTF-8 as it is, anything else as a hex dump;
    long values are cut, and say so.
    """
    if value is None:
        return "(no value)"
    raw = bytes(value)
    return _cut(_text(raw), len(raw))


def headers(pairs: Sequence[tuple[str, str | None]]) -> str:
    """Return stored headers, pairs of name and base64 or null, a line each."""
    return "\n".join(f"{name}: {_header(value)}" for name, value in pairs)


def _header(value: str | None) -> str:
    if value is None:
        return "(no value)"
    raw = base64.b64decode(value)
    return _cut(raw.decode("utf-8", "backslashreplace"), len(raw))


def _cut(text: str, raw_bytes: int) -> str:
    if len(text) <= SHOWN_BYTES:
        return text
    return f"{text[:SHOWN_BYTES]}\n… cut here; {raw_bytes} bytes in all"


def _text(raw: bytes) -> str:
    if len(raw) <= INDENTED_BYTES:
        try:
            return orjson.dumps(orjson.loads(raw), option=orjson.OPT_INDENT_2).decode()
        except (orjson.JSONDecodeError, orjson.JSONEncodeError):
            # It is none, or nested deeper than can be written.
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
