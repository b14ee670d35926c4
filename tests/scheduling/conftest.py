"""Fixtures for the tests of scheduling."""

from collections.abc import Iterator

import pytest
from django.db import connection

from chaos.network import Proxy


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A way to this test's database that can be cut; the connection uses it."""
    settings, original = connection.settings_dict, dict(connection.settings_dict)
    connection.ensure_connection()
    info = connection.connection.info
    with Proxy("127.0.0.1", info.port) as way:
        connection.close()
        settings.update(HOST="127.0.0.1", PORT=str(way.port))
        try:
            yield way
        finally:
            connection.close()
            settings.update(original)
