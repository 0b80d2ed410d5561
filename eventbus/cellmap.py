"""The map of cells as it is written down: which cell serves whom, and by which servers.

It is JSON, in `FEED_CELLS` itself or in the file that this names:

    {"ids": "a", "cells": {
        "a": {"database": "postgresql://…", "redis": "redis://…", "slots": "0-511"},
        "b": {"database": "env:B_DATABASE_URL", "redis": "env:B_REDIS_URL", "slots": "512-1023"}}}

A cell may hold more slots than it serves (`"holds": "0-1023"`) while cells are split or merged.
Settings import this module, so it needs nothing of Django but its exception.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import SplitResult, urlsplit

from django.core.exceptions import ImproperlyConfigured

SLOTS = 1024
NAME = re.compile(r"[a-z][a-z0-9]{0,15}")
RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")
FROM_ENVIRONMENT = "env:"
FIELDS = {"database", "redis", "slots", "holds"}
REDIS_PORT = 6379
SAME_REDIS = (
    "Cells {} and {} have the same Redis: a number of its own is not enough, for what is announced "
    "in one is heard in all"
)

Slots = frozenset[int]


@dataclass(frozen=True, slots=True)
class Place:
    """A cell of the map. Its addresses may have passwords in them, and are not shown."""

    name: str
    slots: Slots
    holds: Slots
    database: str = field(repr=False)
    redis: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class CellMap:
    """All cells, in the order of the map, and the one by whose PostgreSQL ids are minted."""

    ids: str
    places: Mapping[str, Place]

    @property
    def has_names(self) -> bool:
        """Whether it was written down: the only cell without it has no name."""
        return bool(self.ids)


ONE_CELL = CellMap("", {"": Place("", frozenset(range(SLOTS)), frozenset(range(SLOTS)), "", "")})


def read(source: str) -> CellMap:
    """Return the map that `FEED_CELLS` names or is; `ONE_CELL` for none.

    Raises `ImproperlyConfigured` with one sentence, which has no address in it.
    """
    if not source:
        return ONE_CELL
    document = _json(source if _is_inline(source) else _text_of(Path(source)))
    if set(document) != {"ids", "cells"}:
        refuse('The map must be {"ids": NAME, "cells": {NAME: …}}')
    described, ids = document["cells"], document["ids"]
    if not isinstance(described, dict) or not described:
        refuse("There is no cell in it")
    if not isinstance(ids, str) or ids not in described:
        refuse('"ids" must name one of the cells')
    places = {name: _place(name, fields) for name, fields in described.items()}
    _require_each_slot_once(places.values())
    _require_different_servers(places.values())
    return CellMap(ids, places)


def file_of(source: str) -> Path | None:
    """Return the file that the map is in, if it is in one."""
    return None if not source or _is_inline(source) else Path(source)


def refuse(sentence: str) -> NoReturn:
    """Raise `ImproperlyConfigured` for what is wrong with the map."""
    raise ImproperlyConfigured(f"Wrong configuration: FEED_CELLS: {sentence}.")


def written(slots: Iterable[int]) -> str:
    """Return slots as the map has them: `0-99,512`."""
    ranges: list[list[int]] = []
    for slot in sorted(slots):
        if ranges and slot == ranges[-1][1] + 1:
            ranges[-1][1] = slot
        else:
            ranges.append([slot, slot])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _is_inline(source: str) -> bool:
    return source.lstrip().startswith("{")


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        refuse(f"{path} cannot be read: {reason}")


def _json(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError):
        # What the parser has to say may quote an address.
        refuse("It is not JSON")
    if not isinstance(document, dict):
        refuse("It is not a JSON object")
    return document


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            refuse(f"{name!r} is in it twice")
    return dict(pairs)


def _place(name: str, fields: object) -> Place:
    if not NAME.fullmatch(name):
        refuse(f"{name!r} is no name of a cell: up to 16 of a-z and 0-9, a letter first")
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        refuse(f"Cell {name} must have texts for its database, redis and slots")
    unknown = fields.keys() - FIELDS
    missing = FIELDS - {"holds"} - fields.keys()
    if unknown or missing:
        wrong = f"no {min(missing)}" if missing else f"{min(unknown)!r}, which means nothing"
        refuse(f"Cell {name} has {wrong}")
    slots = slots_of(name, fields["slots"])
    holds = slots_of(name, fields["holds"]) if "holds" in fields else slots
    if not slots <= holds:
        refuse(f"Cell {name} serves slots that it does not hold")
    return Place(
        name, slots, holds, _secret(name, fields, "database"), _secret(name, fields, "redis")
    )


def slots_of(name: str, text: str) -> Slots:
    slots: set[int] = set()
    for part in filter(None, text.replace(" ", "").split(",")):
        found = RANGE.fullmatch(part)
        if not found:
            refuse(f"Cell {name} has slots that are not like 0-511,700")
        first = int(found[1])
        last = int(found[2] or first)
        if not first <= last < SLOTS:
            refuse(f"Cell {name} has slots {part}, which are not within 0-{SLOTS - 1}")
        slots.update(range(first, last + 1))
    return frozenset(slots)


def _secret(name: str, fields: Mapping[str, str], kind: str) -> str:
    value = fields[kind]
    if value.startswith(FROM_ENVIRONMENT):
        variable = value.removeprefix(FROM_ENVIRONMENT)
        value = os.environ.get(variable, "")
        if not value:
            refuse(f"Cell {name} has its {kind} in the variable {variable}, which is not set")
    if not value:
        refuse(f"Cell {name} has no {kind}")
    return value


def _require_each_slot_once(places: Iterable[Place]) -> None:
    serving: dict[int, str] = {}
    for place in places:
        for slot in sorted(place.slots):
            if slot in serving:
                refuse(f"Slot {slot} is served by both {serving[slot]} and {place.name}")
            serving[slot] = place.name
    missing = set(range(SLOTS)) - serving.keys()
    if missing:
        refuse(f"No cell serves {'slot' if len(missing) == 1 else 'slots'} {written(missing)}")


def _require_different_servers(places: Iterable[Place]) -> None:
    databases: dict[str, str] = {}
    redis: dict[str, str] = {}
    for place in places:
        other = databases.setdefault(_database_at(place.database), place.name)
        if other != place.name:
            refuse(f"Cells {other} and {place.name} have the same database")
        other = redis.setdefault(_redis_at(place.redis), place.name)
        if other != place.name:
            refuse(SAME_REDIS.format(other, place.name))


def _database_at(address: str) -> str:
    """Return what tells one database from another by their addresses: no user, no options."""
    parts = _parts_of(address)
    return f"{_without_user(parts)}{parts.path}"


def _redis_at(address: str) -> str:
    """Return what tells one Redis from another by their addresses.

    Not the number of the database in it: what is announced in one of them is heard in all.
    """
    parts = _parts_of(address)
    if parts.scheme == "unix":
        return parts.path
    server = _without_user(parts)
    return server if re.search(r":\d+$", server) else f"{server}:{REDIS_PORT}"


def _parts_of(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:  # settings refuse it, when they take it apart
        return SplitResult("", address, "", "", "")


def _without_user(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2].lower()
