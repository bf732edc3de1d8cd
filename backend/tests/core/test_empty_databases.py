"""What the tests stand on: a database that one has used is as good as new for the next."""

from __future__ import annotations

import psycopg
import pytest
from sqlalchemy import URL

from testkit.databases import EmptyDatabases, plain


def _use(url: URL, *statements: str) -> None:
    with psycopg.connect(plain(url), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


_DEFER = """
    SELECT procrastinate_defer_jobs_v1(
        ARRAY[ROW('q', 'task', 0, NULL, NULL, '{}', NULL)::procrastinate_job_to_defer_v1]
    )
"""


def _number(url: URL, query: str) -> int:
    with psycopg.connect(plain(url), autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return int(row[0])


def test_rows_numbers_and_connections_of_one_test_are_gone_in_the_next(
    databases: EmptyDatabases,
) -> None:
    with databases.lend() as url:
        _use(url, _DEFER, _DEFER)
        assert _number(url, "SELECT max(id) FROM procrastinate_jobs") == 2
        left_open = psycopg.connect(plain(url))
        left_open.execute("SELECT 1 FROM procrastinate_jobs FOR UPDATE")
    with databases.lend() as again:
        assert again == url
        assert _number(again, "SELECT count(*) FROM procrastinate_jobs") == 0
        assert _number(again, "SELECT count(*) FROM procrastinate_events") == 0
        _use(again, _DEFER)
        assert _number(again, "SELECT max(id) FROM procrastinate_jobs") == 1
    with pytest.raises(psycopg.OperationalError):
        left_open.execute("SELECT 1")


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE api_key RENAME TO something_else",
        "ALTER TABLE api_key ADD COLUMN something int",
        "ALTER TABLE api_key ALTER COLUMN name DROP NOT NULL",
        "CREATE TABLE something (id int)",
        "CREATE INDEX something ON api_key (name)",
        "CREATE SCHEMA something",
        "CREATE FUNCTION something() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "ALTER TABLE procrastinate_jobs DISABLE TRIGGER ALL",
        "UPDATE alembic_version SET version_num = '0001'",
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''64kB''', "
        "current_database()); END $$",
        "DROP TABLE alembic_version",
    ],
)
def test_a_database_whose_schema_was_changed_is_not_lent_again(
    databases: EmptyDatabases, change: str
) -> None:
    with databases.lend() as url:
        _use(url, change)
    with databases.lend() as other:
        assert other != url
