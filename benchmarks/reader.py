"""Reads at a small steady rate, from a process that does nothing else (and needs no Django)."""

import socket
import time

READ_RATE = 50


def read_steadily(port: int, text: str, seconds: float) -> list[float]:
    """Return how long each read took, of `READ_RATE` a second."""
    waits: list[float] = []
    deadline = time.perf_counter() + seconds
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while (started := time.perf_counter()) < deadline:
            connection.sendall(text.encode())
            head, _, body = connection.recv(65_536).partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            while len(body) < length:
                body += connection.recv(65_536)
            waits.append(time.perf_counter() - started)
            time.sleep(max(0.0, 1 / READ_RATE - waits[-1]))
    return waits
