"""An identity provider: it issues tokens and serves its key set, or hangs, or dies, or answers with
an error page.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm


class Provider:
    """Serves `keys` at `url`; every request is counted, and waits while `hangs` is set."""

    def __init__(self) -> None:
        self.private: dict[str, Any] = {}
        self.served: list[dict[str, Any]] = []
        self.requests = 0
        self.page: bytes | None = None
        self._goes_on = threading.Event()
        self._goes_on.set()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/jwks.json"

    def start(self) -> None:
        """Listen, at the same address as before."""
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.requests += 1
                provider._goes_on.wait()
                self._answer(provider.page or json.dumps({"keys": provider.served}).encode())

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def die(self) -> None:
        """Close the port."""
        self._goes_on.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def hang(self) -> None:
        """Take requests and answer none until `go_on`."""
        self._goes_on.clear()

    def go_on(self) -> None:
        self._goes_on.set()

    def add(self, key_id: str, algorithm: str = "RS256", **described: Any) -> None:
        """Make a key and serve it."""
        jwk: Any
        if algorithm == "RS256":
            self.private[key_id] = key = rsa.generate_private_key(65_537, 2_048)
            jwk = json.loads(RSAAlgorithm.to_jwk(key.public_key()))
        else:
            self.private[key_id] = curve_key = ec.generate_private_key(ec.SECP256R1())
            jwk = json.loads(ECAlgorithm.to_jwk(curve_key.public_key()))
        self.served.append(jwk | {"kid": key_id, "use": "sig"} | described)

    def remove(self, key_id: str) -> None:
        self.served = [key for key in self.served if key["kid"] != key_id]

    def token(self, key_id: str, algorithm: str = "RS256", **claims: Any) -> str:
        """Sign a token for user 1."""
        whole = {"sub": "1", "exp": int(time.time()) + 600} | claims
        return jwt.encode(whole, self.private[key_id], algorithm=algorithm, headers={"kid": key_id})
