"""Whose cell a request is about, which is told before anybody asks a server.

A path that is about a user's feed or follows leads to the cell that serves this user, anything else
to that of the user who asks. Of a token that was not verified yet only the user that it claims is
read: it says where to ask, and nobody is believed for it.
"""

import binascii
import re
from base64 import urlsafe_b64decode

import orjson

from eventbus import cells
from eventbus.cells import Cell
from eventbus.ids.snowflake import number_in
from feedsite.authentication import principal_without_waiting, token_of

ABOUT_A_USER = re.compile(
    r"/(?:feeds/([1-9][0-9]{0,18})(?:/.*)?|users/([1-9][0-9]{0,18})/(?:following|followers|export))"
)
OVER_ALL_CELLS = re.compile(r"/users/[1-9][0-9]{0,18}/(?:followers|export)")


def cell_of(path: str, authorization: str) -> Cell:
    """Return the cell that a request is about; that of the process where it says nothing of whom.

    Waits for nobody.
    """
    if is_alone():
        return cells.own()
    user_id = _user_in(path) or _asking(token_of(authorization))
    return cells.of(user_id) if user_id else cells.own()


def is_over_all_cells(path: str) -> bool:
    """Tell whether the answer is made of what several cells have."""
    return not is_alone() and OVER_ALL_CELLS.fullmatch(path) is not None


def is_alone() -> bool:
    """Tell whether there is but one cell."""
    return len(cells.every()) == 1


def _user_in(path: str) -> int | None:
    found = ABOUT_A_USER.fullmatch(path)
    return number_in(found[1] or found[2]) if found else None


def _asking(token: str) -> int | None:
    principal = principal_without_waiting(token)
    return _claimed_by(token) if principal is None else principal.user_id


def _claimed_by(token: str) -> int | None:
    claims = token.split(".")[1:2]
    try:
        told = orjson.loads(urlsafe_b64decode(claims[0] + "=="))
        return number_in(told["sub"]) or None
    except (binascii.Error, ValueError, LookupError, TypeError, AttributeError):
        return None
