"""The process's pool of connections to PostgreSQL: large enough that no thread of it waits for
another.
"""

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from eventbus.database.current import connection


def require(process: str) -> None:
    """Raise `ImproperlyConfigured` if the pool has fewer connections than `process` may use at
    once.
    """
    need = settings.CONNECTIONS_NEEDED[process]
    if need.connections <= settings.DATABASE_POOL_MAX:
        return
    remedy = f"raise it, or lower {need.setting}" if need.setting else "raise it"
    raise ImproperlyConfigured(
        f"Wrong configuration: DATABASE_POOL_MAX is {settings.DATABASE_POOL_MAX}, but this process ({process}) "
        f"may use {need.connections} connections at once: {remedy}."
    )


def renew() -> None:
    """Have each connection of the pool be replaced by a new one: now, or when whoever uses it gives
    it back.
    """
    if connection.pool is not None:  # type: ignore[attr-defined]
        connection.pool.drain()  # type: ignore[attr-defined]
