"""A stretch of network between a client and a server that a test can cut."""

import socket
import threading
from contextlib import suppress
from typing import Self


class Proxy:
    """Passes bytes on between its own port and a server's, until it is told to lose an answer."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._cut_after: bytes | None = None
        self.cuts = 0
        self._black_hole = 0

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
                    if self._black_hole > era:
                        continue
                    client.sendall(data)
            # Not close(): the other thread still reads from it.
            for end in (client, server):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

        threading.Thread(target=answers, daemon=True).start()
        with client, server, suppress(OSError):
            while data := client.recv(65536):
                if self._cut_after is not None and self._cut_after in data:
                    self._cut_after = None
                    self.cuts += 1
                    doomed.set()
                if self._black_hole == era:
                    server.sendall(data)
