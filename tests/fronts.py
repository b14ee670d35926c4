"""Ways to a Redis other than plain TCP: TLS with the test's own certificates, a Unix socket."""

import asyncio
import shutil
import ssl
import subprocess
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import pytest

T = TypeVar("T")
NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"


def make_certificates(place: Path) -> Path:
    """Write a CA (ca.pem) and a certificate for localhost (server.pem, server.key)."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, so a certificate for TLS cannot be made")
    place.mkdir()
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for arguments in (
        ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
         "-subj", "/CN=A test's own CA"],
        ["req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost",
         "-addext", NAMES],
        ["x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
         "-CAcreateserial", "-out", "server.pem", "-days", "2", "-extfile", "names"],
    ):  # fmt: skip
        (place / "names").write_text(NAMES)
        subprocess.run(["openssl", *arguments], cwd=place, check=True, capture_output=True)
    return place


class Front:
    """Forwards connections of another kind to a Redis, each over a connection of its own."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname, parts.port)
        self.connections = 0  # that came through, TLS handshake and all
        self._loop = asyncio.new_event_loop()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def listen_with_tls(self, certificates: Path) -> int:
        """Listen on a port of 127.0.0.1, and return it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
        server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context))
        self._servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    def listen_on(self, path: Path) -> None:
        """Listen on a Unix socket."""
        self._servers.append(self._run(asyncio.start_unix_server(self._serve, path)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(5)

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.05)  # aborted connections close their files in the next rounds

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        answers, questions = await asyncio.open_connection(*self._server)
        ways = [
            asyncio.create_task(way)
            for way in (_pass_on(reader, questions), _pass_on(answers, writer))
        ]
        try:
            with suppress(asyncio.CancelledError):
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            writer.transport.abort()
            questions.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
