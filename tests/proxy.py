"""A stretch of network between a client and a server that a test can cut."""

import socket
import threading
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit


class Proxy:
    """Passes bytes on between its own port and a server's, until it is told to lose an answer."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._cut_after: bytes | None = None
        self.cuts = 0
        self._black_hole = 0
        self._cut_off = False
        self.url = ""

    @classmethod
    def before(cls, url: str) -> Self:
        """Return a proxy for the server of a URL; its own `url` goes through it."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        proxy = cls(parts.hostname, parts.port)
        netloc = parts.netloc.replace(f":{parts.port}", f":{proxy.port}")
        proxy.url = parts._replace(netloc=netloc).geturl()
        return proxy

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def lose_the_answer_to(self, text: bytes) -> None:
        """Let the next statement that holds `text` reach the server, and cut when it answers."""
        self._cut_after = text

    def swallow(self) -> None:
        """Let nothing through any more on the connections that exist, and cut none of them."""
        self._black_hole += 1

    def cut_off(self) -> None:
        """Let nothing through, on new connections neither, and say so to nobody."""
        self._cut_off = True
        self.swallow()

    def mend(self) -> None:
        """Let new connections through again; what went before them is lost."""
        self.swallow()
        self._cut_off = False

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection(self._server)
        doomed = threading.Event()
        era = self._black_hole

        def answers() -> None:
            with suppress(OSError):
                while data := server.recv(65536):
                    if doomed.is_set():
                        break
                    if self._black_hole > era or self._cut_off:
                        continue
                    client.sendall(data)
            _end(client, server)

        threading.Thread(target=answers, daemon=True).start()
        with client, server:
            with suppress(OSError):
                while data := client.recv(65536):
                    if self._cut_after is not None and self._cut_after in data:
                        self._cut_after = None
                        self.cuts += 1
                        doomed.set()
                    if self._black_hole == era and not self._cut_off:
                        server.sendall(data)
            _end(client, server)


def _end(*ends: socket.socket) -> None:
    # Not close(): the other thread still reads from it.
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
