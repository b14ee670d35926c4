"""Which ledger this is."""

from typing import Any
from uuid import UUID

import psycopg
import pytest
from django.db import connection

from scheduling.postgres import identity
from scheduling.postgres.identity import ask_ledger_id, ledger_id
from tests.scheduling.ledger import second_connection


@pytest.mark.django_db
def test_it_is_the_same_each_time_and_asked_for_once(django_assert_num_queries: Any) -> None:
    found = ask_ledger_id()
    assert UUID(found)
    with django_assert_num_queries(0):
        assert ledger_id() == found
    identity._known = ""
    assert ledger_id() == found


@pytest.mark.django_db
def test_each_database_of_a_cluster_is_another_ledger() -> None:
    parameters = connection.get_connection_params()
    names = ("host", "port", "user", "password")
    known = {name: parameters[name] for name in names if parameters.get(name)}
    with psycopg.connect(**known, dbname="postgres") as other:
        ((id_there,),) = other.execute(identity.IDENTITY).fetchall()
    with second_connection() as same:
        ((id_here,),) = same.execute(identity.IDENTITY).fetchall()
    assert str(id_here) == ask_ledger_id() != str(id_there)


@pytest.mark.django_db
def test_a_role_that_may_not_ask_for_the_clusters_number_knows_the_databases_name() -> None:
    with connection.cursor() as cursor:
        cursor.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        cursor.execute("CREATE ROLE narrow")
        cursor.execute("SET LOCAL ROLE narrow")
        assert UUID(ask_ledger_id())
        assert ask_ledger_id() == ask_ledger_id()
