"""Django's PostgreSQL backend, which does not let every request wait for a server that is away.

Of threads with a deadline (`feedsite.postgresql.connection`) one at a time tries a server that does
not answer; the others are refused at once.
"""

import time
from typing import Any

import psycopg
from django.conf import settings
from django.db import OperationalError
from django.db.backends.postgresql import base
from psycopg import IsolationLevel
from psycopg_pool import PoolTimeout

from eventbus import breaker, cells
from eventbus.breaker import Breaker
from eventbus.database.deadline import answer_within, deadline
from eventbus.exceptions import ServerAway
from feedsite.postgresql.connection import failure_since


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's connection of one thread, taken from the pool of the process."""

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Take a connection that was just seen to answer. Raises `OperationalError`."""
        asked_at = time.monotonic()
        server = breaker.of(cells.at(self.alias)).postgresql
        try:
            if deadline() is None or not self.pool:
                connection = super().get_new_connection(conn_params)
            else:
                connection = self._try(server)
        except PoolTimeout as error:
            raise _with_reason(error, conn_params, asked_at) from error
        connection.breaker = server
        return connection

    def _try(self, server: Breaker) -> Any:
        """Take a connection unless the server is away, and say how that went."""
        try:
            trial = server.enter()
        except ServerAway as error:
            raise OperationalError(str(error)) from error
        try:
            connection = self._take()
        except psycopg.OperationalError as error:  # `PoolTimeout` is one
            server.failed(error, trial)
            raise
        except BaseException:
            server.gave_up(trial)
            raise
        server.succeeded()
        return connection

    def _take(self) -> Any:
        """Do as Django's method does, but wait for the pool no longer than the thread has time.

        Nor longer than for a short answer, whatever time the questions to come have: a person at
        the admin may ask for much, and should soon be told that nobody answers.
        """
        self.isolation_level = IsolationLevel(self.settings_dict["OPTIONS"]["isolation_level"])
        self.pool.open()
        with answer_within(settings.DATABASE_ANSWER_SECONDS):
            until = deadline() or 0.0
            connection = self.pool.getconn(timeout=max(0.0, until - time.monotonic()))
        connection.isolation_level = self.isolation_level
        return connection


def _with_reason(
    error: PoolTimeout, conn_params: dict[str, Any], asked_at: float
) -> psycopg.OperationalError:
    """Return what to raise for a pool that had no connection: why it got none, if that is why."""
    reason = failure_since(asked_at, conn_params)
    return psycopg.OperationalError(reason) if reason else error
