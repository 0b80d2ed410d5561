"""The demo's way to the API: like any client, with a token a user, repeating what was not
accepted.
"""

import http.client
import json
import time
from collections.abc import Callable
from typing import Any

from django.core.management.base import CommandError

from feedsite.authentication import issue_token

TOKEN_SECONDS = 86_400
PATIENCE_SECONDS = 30.0
PAUSE_SECONDS = 0.2


class Client:
    """One connection to the API at `port`; `pause(seconds)` is called before each request and
    between attempts.
    """

    def __init__(self, port: int, pause: Callable[[float], None]) -> None:
        self.base_url = f"http://127.0.0.1:{port}"
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        self._pause = pause
        self._tokens: dict[int, str] = {}

    def token(self, user_id: int) -> str:
        """Return a token of the user, issued at the first call."""
        if user_id not in self._tokens:
            self._tokens[user_id] = issue_token(user_id, "", TOKEN_SECONDS)
        return self._tokens[user_id]

    def get(self, user_id: int, path: str) -> Any:
        return self._request("GET", user_id, path, None, {})

    def put(self, user_id: int, path: str) -> Any:
        return self._request("PUT", user_id, path, None, {})

    def post(self, user_id: int, path: str, body: dict[str, str], idempotency_key: str) -> Any:
        headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key}
        return self._request("POST", user_id, path, json.dumps(body), headers)

    def wait_until_ready(self) -> None:
        """Return once the API and what it depends on answer. Raises `CommandError`."""
        self._persist("GET", "/readyz", None, {})

    def close(self) -> None:
        self._connection.close()

    def _request(
        self, method: str, user_id: int, path: str, body: str | None, headers: dict[str, str]
    ) -> Any:
        return json.loads(
            self._persist(
                method, path, body, headers | {"Authorization": f"Bearer {self.token(user_id)}"}
            )
        )

    def _persist(self, method: str, path: str, body: str | None, headers: dict[str, str]) -> bytes:
        """Return the answer, asking again while there is none or only a 503: every request here is
        idempotent.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        self._pause(0)
        while True:
            status, answer = self._try(method, path, body, headers)
            if 200 <= status < 300:
                return answer
            if status not in (0, 503):
                raise CommandError(
                    f"{method} {path} was answered with {status}: {answer.decode(errors='replace')}"
                )
            if time.monotonic() > deadline:
                raise CommandError(f"{method} {path} got no answer for {PATIENCE_SECONDS:.0f} s.")
            self._pause(PAUSE_SECONDS)

    def _try(
        self, method: str, path: str, body: str | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        try:
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return 0, b""
