"""A network link between a client and a server, which can be cut in several ways."""

import socket
import threading
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

# The fate of bytes while the link is cut. Connections that have lost some end when it is mended.
REFUSED = "refused"  # connections end, and new ones too
SWALLOWED = "swallowed"  # no byte gets through either way, and no end is notified
DEAF = "deaf"  # the client's bytes arrive, and the answers do not
DELAYED = "delayed"  # nothing gets through, and all of it does afterwards, as TCP sends it again
MANNERS = (REFUSED, SWALLOWED, DEAF, DELAYED)

QUESTIONS, ANSWERS = "questions", "answers"  # the two ways of a connection


class Proxy:
    """Passes bytes on between its own port and a server's, until it is cut."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = ""
        self.cut = ""  # in which manner it is cut now
        self._whole = threading.Event()
        self._whole.set()
        self._links = set[_Link]()
        self._cut_after: bytes | None = None
        self.cuts = 0

    @classmethod
    def before(cls, url: str) -> Self:
        """Return a proxy for the server of a URL; its own `url` goes through it."""
        parts = urlsplit(url)
        proxy = cls(parts.hostname or "", parts.port or 0)
        netloc = parts.netloc.replace(f":{parts.port}", f":{proxy.port}")
        proxy.url = parts._replace(netloc=netloc).geturl()
        return proxy

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends accept()
        self._listener.close()
        self.mend()

    def lose_the_answer_to(self, text: bytes) -> None:
        """Let the next statement that holds `text` reach the server, and cut when it answers."""
        self._cut_after = text

    def swallow(self) -> None:
        """Let nothing through any more on the connections that exist, and cut none of them."""
        for link in list(self._links):
            link.silent |= {QUESTIONS, ANSWERS}

    def cut_off(self, manner: str = SWALLOWED) -> None:
        """Let nothing through, on new connections neither, until it is mended."""
        self.cut = manner
        self._whole.clear()
        if manner == REFUSED:
            for link in list(self._links):
                link.end()

    def mend(self) -> None:
        """Let bytes through again; connections that have lost some end."""
        self.cut = ""
        for link in list(self._links):
            if link.has_lost:
                link.end()
        self._whole.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            if (manner := self.cut) in (SWALLOWED, DELAYED):
                self._whole.wait()
            if manner in (REFUSED, SWALLOWED):
                return
            with socket.create_connection(self._server) as server:
                link = _Link(client, server)
                self._links.add(link)
                try:
                    threading.Thread(target=self._answers, args=(link,), daemon=True).start()
                    self._questions(link)
                finally:
                    self._links.discard(link)

    def _questions(self, link: "_Link") -> None:
        with suppress(OSError):
            while data := link.client.recv(65536):
                if self._cut_after is not None and self._cut_after in data:
                    self._cut_after = None
                    self.cuts += 1
                    link.doomed = True
                if self._lets_through(link, QUESTIONS):
                    link.server.sendall(data)
        self._end(link)

    def _answers(self, link: "_Link") -> None:
        with suppress(OSError):
            while (data := link.server.recv(65536)) and not link.doomed:
                if self._lets_through(link, ANSWERS):
                    link.client.sendall(data)
        self._end(link)

    def _lets_through(self, link: "_Link", way: str) -> bool:
        """Return whether the bytes just read are passed on; wait first if they are delayed."""
        if self.cut == DELAYED:
            self._whole.wait()
        if self.cut == SWALLOWED or (self.cut == DEAF and way == ANSWERS):
            # Not one byte more goes this way, or a statement could arrive with a hole in it.
            link.has_lost = True
            link.silent.add(way)
        return way not in link.silent

    def _end(self, link: "_Link") -> None:
        """Notify each end that the other is gone, as soon as that is possible."""
        if self.cut != REFUSED:
            self._whole.wait()
        link.end()


class _Link:
    """One connection, which is two."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.silent = set[str]()  # the ways on which nothing goes any more
        self.doomed = False  # it ends with the next answer
        self.has_lost = False  # it ends when the network is whole again

    def end(self) -> None:
        # Not close(): other threads still read from them.
        for one in (self.client, self.server):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
