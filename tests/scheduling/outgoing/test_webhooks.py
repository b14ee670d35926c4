"""Calls to the world outside, against a real HTTP server whose answers a test chooses."""

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pytest_django import Settings

from scheduling.jobs import PermanentError
from scheduling.outgoing import webhooks
from scheduling.outgoing.http import Limits
from scheduling.outgoing.webhooks import post


class Hook:
    """A server that keeps the requests. `answer` is called to write to the socket."""

    def __init__(self) -> None:
        self.status = 204
        self.headers: dict[str, str] = {}
        self.calls: list[tuple[str, dict[str, str], Any]] = []
        self.answer: Callable[[Any], None] | None = None
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.calls.append((self.path, dict(self.headers), json.loads(body)))
                if hook.answer is not None:
                    hook.answer(self.wfile)
                    return
                self.send_response(hook.status)
                for name, value in hook.headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (its name there)
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hook(settings: Settings) -> Iterator[Hook]:
    settings.ALERT_ALLOW_PRIVATE = True
    made = Hook()
    yield made
    made.close()


class TestACall:
    def test_it_posts_json(self, hook: Hook) -> None:
        assert post(f"{hook.url}?a=1", b'{"text": "x"}', {"Idempotency-Key": "k"}) == 204
        ((path, headers, body),) = hook.calls
        assert (path, body) == ("/hook?a=1", {"text": "x"})
        assert headers["Content-Type"] == "application/json"
        assert headers["Idempotency-Key"] == "k"
        assert headers["Host"] == hook.url.split("/")[2]

    @pytest.mark.parametrize("status", [500, 502, 503, 408, 425, 429])
    def test_what_may_pass_is_for_another_try(self, hook: Hook, status: int) -> None:
        hook.status = status
        with pytest.raises(OSError, match=f"127.0.0.1 answered {status}"):
            post(hook.url, b"{}", {})

    @pytest.mark.parametrize("status", [400, 401, 404, 410])
    def test_a_refusal_is_for_good(self, hook: Hook, status: int) -> None:
        hook.status = status
        with pytest.raises(PermanentError, match=f"answered {status}"):
            post(hook.url, b"{}", {})

    def test_no_redirect_is_followed(self, hook: Hook) -> None:
        hook.status, hook.headers = 302, {"Location": f"{hook.url}/elsewhere"}
        with pytest.raises(PermanentError, match="redirects are not followed"):
            post(hook.url, b"{}", {})
        assert len(hook.calls) == 1

    def test_nobody_there_is_for_another_try(self, settings: Settings, free_port: int) -> None:
        settings.ALERT_ALLOW_PRIVATE = True
        with pytest.raises(ConnectionRefusedError):
            post(f"http://127.0.0.1:{free_port}/", b"{}", {})

    def test_a_server_that_never_ends_its_answer_is_left(
        self, hook: Hook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(webhooks, "LIMITS", Limits(whole=0.5))
        done = threading.Event()

        def drip(out: Any) -> None:
            while not done.wait(0.1):
                try:
                    out.write(b"H")
                except OSError:
                    return

        hook.answer = drip
        with pytest.raises(OSError, match=r"timed out|not answer in time"):
            post(hook.url, b"{}", {})
        done.set()

    @pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n", b"x" * 20_000])
    def test_what_is_no_http_is_no_yes(self, hook: Hook, answer: bytes) -> None:
        hook.answer = lambda out: out.write(answer)
        with pytest.raises(OSError, match=r"not answer with HTTP|without response|reset|too long"):
            post(hook.url, b"{}", {})

    def test_without_a_certificate_it_trusts_nobody(self, hook: Hook) -> None:
        with pytest.raises(OSError) as error:  # noqa: PT011 (ssl's words differ)
            post(hook.url.replace("http:", "https:"), b"{}", {})
        assert isinstance(error.value, ssl.SSLError)


class TestWhereItMayGo:
    @pytest.mark.parametrize(
        "host",
        ["127.0.0.1", "localhost", "[::1]", "0", "169.254.169.254", "10.1.2.3",
         "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"],
    )  # fmt: skip
    def test_nothing_goes_inside(self, host: str) -> None:
        with pytest.raises(PermanentError, match=r"not a global address.* nothing is sent"):
            post(f"https://{host}/", b"{}", {})

    def test_a_server_inside_hears_nothing(self, hook: Hook, settings: Settings) -> None:
        settings.ALERT_ALLOW_PRIVATE = False
        with pytest.raises(PermanentError):
            post(hook.url, b"{}", {})
        assert hook.calls == []

    def test_the_address_that_is_judged_is_the_one_that_is_connected_to(
        self, hook: Hook, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A name that is public when it is looked at, and private when it is connected to."""
        settings.ALERT_ALLOW_PRIVATE = False
        real, asked = socket.getaddrinfo, []

        def rebinding(host: Any, *args: Any, **options: Any) -> Any:
            asked.append(host)
            return real("192.88.98.1" if len(asked) == 1 else "127.0.0.1", *args, **options)

        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        monkeypatch.setattr(webhooks, "LIMITS", Limits(connect=0.2))
        with pytest.raises(OSError):  # noqa: PT011 (no network here)
            post(hook.url.replace("127.0.0.1", "rebinding.example"), b"{}", {})
        assert hook.calls == []

    def test_a_name_that_is_not_there_is_for_another_try(self) -> None:
        with pytest.raises(OSError):  # noqa: PT011 (the resolver's words differ)
            post("https://nowhere.invalid/", b"{}", {})
