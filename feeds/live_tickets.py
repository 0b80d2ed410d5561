"""Tickets to one live feed, for pages of the admin: who looks at them has a session and no token.

A ticket opens this stream alone, which tells ids and numbers and no content.
"""

import time

from django.core import signing

SECONDS = 3_600
_SALT = "feeds.live"


def issue(user_id: int) -> str:
    """Return a ticket to the live feed of the user."""
    until = int(time.time()) + SECONDS
    return signing.dumps([user_id, until], salt=_SALT)


def expires_at(ticket: str, user_id: int) -> float | None:
    """Return until when the ticket is good for this feed, in seconds since 1970; None if it is
    not.
    """
    try:
        ticket_user, until = signing.loads(ticket, salt=_SALT)
    except signing.BadSignature:
        return None
    if ticket_user != user_id or until <= time.time():
        return None
    return float(until)
