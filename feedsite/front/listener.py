"""Clients that do not read their answers.

Granian has no time-out for them: what they do not take waits in its memory. So the kernel is told
to end their connections: those on which sent bytes stay unacknowledged, and those whose client
acknowledges but has had no room for more, for `HTTP_SEND_SECONDS`.
"""

import os
import socket

from django.conf import settings


def end_unread_connections(listener: int) -> None:
    """Have the kernel do so for each connection that is accepted on this listening socket.

    Does nothing where the kernel is not Linux.
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is None:
        return
    with socket.socket(fileno=os.dup(listener)) as ours:  # connections inherit its options
        ours.setsockopt(socket.IPPROTO_TCP, option, settings.HTTP_SEND_SECONDS * 1_000)
