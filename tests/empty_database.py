"""An empty database on the server of the tests, for tests that begin with `migrate`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
from django.db import connection
from psycopg import sql

Database = psycopg.Connection[tuple[Any, ...]]


@contextmanager
def empty_database() -> Iterator[Database]:
    """Make an empty database, and yield a connection to it; it is gone afterwards."""
    known = ("host", "port", "user", "password")
    asked = connection.get_connection_params()
    parameters = {name: asked[name] for name in known if asked.get(name)}
    name = f"empty_{uuid4().hex[:12]}"
    with psycopg.connect(**parameters, dbname="postgres", autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            with psycopg.connect(**parameters, dbname=name, autocommit=True) as own:
                yield own
        finally:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def url_of(database: Database, user: str | None = None) -> str:
    info = database.info
    return f"postgres://{user or info.user}:{info.password}@{info.host}:{info.port}/{info.dbname}"
