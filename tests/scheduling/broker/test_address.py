"""The values of REDIS_URL, and the connections that they make."""

from pathlib import Path
from typing import Any

import pytest
import redis
from redis import SSLConnection, UnixDomainSocketConnection

from scheduling.broker.address import AddressError, checked, connection_options, without_password


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("redis://h", {"host": "h"}),
        ("redis://:p%40w@h:1/2", {"password": "p@w", "host": "h", "port": 1, "db": 2}),
        ("redis://h?db=4", {"host": "h", "db": 4}),
        ("redis://h?virtual_host=4", {"host": "h", "db": 4}),
        ("rediss://h/1", {"host": "h", "db": 1, "connection_class": SSLConnection}),
        (
            "rediss://h?ssl_cert_reqs=CERT_NONE",
            {"host": "h", "ssl_cert_reqs": "none", "connection_class": SSLConnection},
        ),
        (
            "unix://u:p@/run/redis.sock?db=3",
            {
                "username": "u", "password": "p", "path": "/run/redis.sock", "db": 3,
                "connection_class": UnixDomainSocketConnection,
            },
        ),
        (
            "redis+socket:///run/redis.sock?virtual_host=3",
            {"path": "/run/redis.sock", "db": 3, "connection_class": UnixDomainSocketConnection},
        ),
    ],
)  # fmt: skip
def test_a_url_says_how_to_connect(url: str, options: dict[str, object]) -> None:
    assert connection_options(url) == options


def test_what_is_not_said_of_tls_is_checked() -> None:
    pool = redis.ConnectionPool(**connection_options("rediss://h"))
    connection: Any = pool.make_connection()
    assert (connection.cert_reqs.name, connection.check_hostname) == ("CERT_REQUIRED", True)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("amqp://h", "must begin with redis://"),
        ("redis://h/one", "must have a number as its path"),
        ("redis://h?db=one", "must have a number as its database"),
        ("redis://a/0;redis://:secret@b/0", "must have a number as its path"),
        ("redis://:se/cret@h", "percent-encode special characters"),
        ("redis://h:port/0", "cannot be read"),
        ("redis://h?socket_timeout=soon", "cannot be read"),
        ("redis://h?decode_responses=1", "has an unknown option: decode_responses"),
        ("redis://h?ssl_ca_certs=/ca.pem", "only rediss:// takes options of TLS"),
        ("rediss://h?ssl_ca_certs=/none.pem", "names a file that does not exist"),
        ("rediss://h?ssl_cert_reqs=some", "write none, optional or required"),
        ("unix://run/redis.sock", "must name a Unix socket as unix:///path"),
        ("unix://", "must name a Unix socket as unix:///path"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str, said: str) -> None:
    with pytest.raises(AddressError) as refused:
        connection_options(url)
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_scheme_of_celerys_becomes_one_that_all_clients_know(tmp_path: Path) -> None:
    assert checked("redis+socket:///r.sock?virtual_host=3") == "unix:///r.sock?virtual_host=3"
    assert checked("rediss://u:p@h:1/2") == "rediss://u:p@h:1/2"


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("redis://u:p%40w@h:1/2", ("redis://h:1/2", "u", "p@w")),
        ("unix:///r.sock?password=pw&db=1", ("unix:///r.sock?db=1", None, "pw")),
        ("redis://h/0", ("redis://h/0", None, None)),
    ],
)
def test_what_kombu_shows_of_a_url_has_no_password(
    url: str, parts: tuple[str, str | None, str | None]
) -> None:
    assert without_password(url) == parts
