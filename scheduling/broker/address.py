"""Reads REDIS_URL once for all clients: how each connection reaches Redis.

The settings import this module, so it must not need Django.
"""

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis.connection import parse_url

# Celery writes a Unix socket as redis+socket://, redis-py as unix://.
SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "unix": "unix",
    "redis+socket": "unix",
    "redis+unix": "unix",
    "socket": "unix",
}
FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_ca_path")
TLS = {
    *FILES, "ssl_ca_data", "ssl_password", "ssl_cert_reqs", "ssl_check_hostname", "ssl_ciphers",
    "ssl_min_version", "ssl_include_verify_flags", "ssl_exclude_verify_flags",
}  # fmt: skip
ANY = {
    "db", "username", "password", "client_name", "socket_timeout", "socket_connect_timeout",
    "health_check_interval", "max_connections",
}  # fmt: skip
OPTIONS = {"redis": {"socket_keepalive"}, "rediss": {"socket_keepalive", *TLS}, "unix": set[str]()}


class AddressError(ValueError):
    """A Redis URL that cannot be used."""


def connection_options(url: str) -> dict[str, Any]:
    """Return a Redis URL as the options of redis-py's ConnectionPool.

    A rediss:// URL always means TLS with a checked certificate and host name. Its query can name
    the files and relax the checks (`ssl_ca_certs`, `ssl_cert_reqs`, ...). The database stands in
    the path or in the query, as `db` or `virtual_host`.

    Raises:
        AddressError: the URL has an unknown scheme, option or value.
    """
    try:
        parts = urlsplit(url)
        scheme = SCHEMES.get(parts.scheme)
        if scheme is None:
            raise AddressError("must begin with redis://, rediss:// or unix://.")
        _ = parts.port  # raises a ValueError unless it is a number
        options = _options(parts.query)
        unknown = options.keys() - ANY - OPTIONS[scheme]
        if unknown:
            tls = " (only rediss:// takes options of TLS)" if unknown <= TLS else ""
            raise AddressError(f"has an unknown option: {', '.join(sorted(unknown))}{tls}.")
        _check_path(scheme, parts.path, parts.netloc, options)
        plain = _url(scheme, parts.netloc, parts.path, options)
        found: dict[str, Any] = parse_url(plain)  # type: ignore[no-untyped-call]
    except AddressError:
        raise
    except ValueError:  # whose message could hold a part of the password
        raise AddressError(
            "cannot be read (host, port or an option): percent-encode special characters in"
            " the password."
        ) from None
    for name in found.keys() & set(FILES):
        if not Path(found[name]).exists():
            raise AddressError(f"names a file that does not exist, for {name}: {found[name]!r}.")
    return found


def checked(url: str) -> str:
    """Return a Redis URL that can be used, with a scheme that redis-py knows.

    kombu would take redis+socket:// for the name of another transport.

    Raises:
        AddressError: see `connection_options`.
    """
    connection_options(url)
    scheme, _, rest = url.partition("://")
    return f"{SCHEMES[scheme]}://{rest}"


def _options(query: str) -> dict[str, str]:
    """Return the options of a query, in redis-py's names and values."""
    options = dict(parse_qsl(query, keep_blank_values=True))
    if "virtual_host" in options:
        options["db"] = options.pop("virtual_host").strip("/")
    if "ssl_cert_reqs" in options:  # "CERT_NONE" in kombu, "none" in redis-py
        checks = options["ssl_cert_reqs"].lower().removeprefix("cert_")
        if checks not in ("none", "optional", "required"):
            raise AddressError(f"has ssl_cert_reqs {checks!r}: write none, optional or required.")
        options["ssl_cert_reqs"] = checks
    return options


def _check_path(scheme: str, path: str, netloc: str, options: dict[str, str]) -> None:
    """Refuse a path that redis-py would overlook."""
    if scheme == "unix":
        if not path.strip("/") or netloc.rpartition("@")[2]:
            raise AddressError("must name a Unix socket as unix:///path/to/redis.sock (?db=1).")
    elif (database := unquote(path).strip("/")) and not database.isdecimal():
        raise AddressError("must have a number as its path, the database.")
    if not options.get("db", "0").isdecimal():
        raise AddressError("must have a number as its database.")


def without_password(url: str) -> tuple[str, str | None, str | None]:
    """Return a URL without its user and password, and these: kombu shows URLs in several places."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    username, password = options.pop("username", None), options.pop("password", None)
    username = unquote(parts.username) if parts.username else username
    password = unquote(parts.password) if parts.password else password
    host = parts.netloc.rpartition("@")[2]
    return _url(parts.scheme, host, parts.path, options), username, password


def _url(scheme: str, netloc: str, path: str, options: dict[str, str]) -> str:
    # urlunsplit would drop the // of a URL without a host.
    return f"{scheme}://{netloc}{path}" + (f"?{urlencode(options)}" if options else "")
