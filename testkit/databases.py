"""Databases for tests, each empty when it is lent.

To copy a database takes as long as a test, so one that a test has left is emptied and lent again.
One whose schema or settings a test has changed, or whose rows it cannot be rid of, is dropped.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

import psycopg
from sqlalchemy import URL

from app.core.db import migrate

_TEMPLATE = "template"
_KEPT = "alembic_version"

_END_OTHERS = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
# Deleting from the few tables that hold rows is much quicker than truncating all of them.
_EMPTY = f"""
DO $$
DECLARE
    name regclass;
    holds boolean;
BEGIN
    SET LOCAL session_replication_role = replica;  -- in any order, and no trigger runs
    FOR name IN
        SELECT oid FROM pg_class
        WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace
          AND relname <> '{_KEPT}'
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT 1 FROM %s)', name) INTO holds;
        IF holds THEN
            EXECUTE format('DELETE FROM %s', name);
        END IF;
    END LOOP;
    FOR name IN
        SELECT seqrelid FROM pg_sequence WHERE pg_sequence_last_value(seqrelid) IS NOT NULL
    LOOP
        EXECUTE format('ALTER SEQUENCE %s RESTART', name);
    END LOOP;
END $$
"""
# Every kind of thing that a migration, or a test that breaks something, may change.
_SCHEMA = f"""
    SELECT md5(string_agg(part, '|' ORDER BY part)) FROM (
        SELECT concat('class', relname, relkind, relacl, reloptions, relrowsecurity) AS part
        FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL
        SELECT concat('column', attrelid::regclass, attname, atttypid, attnotnull, attisdropped)
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        WHERE relnamespace = 'public'::regnamespace
        UNION ALL
        SELECT concat('default', adrelid::regclass, adnum, pg_get_expr(adbin, adrelid))
        FROM pg_attrdef
        UNION ALL
        SELECT concat('constraint', conrelid::regclass, conname, convalidated)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION ALL
        SELECT concat('trigger', tgrelid::regclass, tgname, tgenabled) FROM pg_trigger
        WHERE NOT tgisinternal
        UNION ALL
        SELECT concat('function', proname, md5(prosrc)) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace
        UNION ALL
        SELECT concat('type', typname) FROM pg_type WHERE typnamespace = 'public'::regnamespace
        UNION ALL
        SELECT concat('schema', nspname, nspacl) FROM pg_namespace WHERE nspname !~ '^pg_'
        UNION ALL
        SELECT concat('setting', setconfig) FROM pg_db_role_setting
        JOIN pg_database ON pg_database.oid = setdatabase WHERE datname = current_database()
        UNION ALL
        SELECT concat('database', datconnlimit, datallowconn, datacl) FROM pg_database
        WHERE datname = current_database()
        UNION ALL
        SELECT concat('revision', version_num) FROM {_KEPT}
    ) AS parts
"""


def plain(url: URL) -> str:
    """The same place, as libpq spells it."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


class EmptyDatabases:
    """Those of one server, for the tests of one process."""

    def __init__(self, server: URL) -> None:
        self._server = server
        # Each with a connection that stays: a new one would have to read the catalogue anew.
        self._free: list[tuple[str, psycopg.Connection[tuple[str]]]] = []
        self._order(f"CREATE DATABASE {_TEMPLATE}")
        migrate(server.set(database=_TEMPLATE))
        with self._connected(_TEMPLATE) as connection:
            self._schema = _fingerprint(connection)

    @contextlib.contextmanager
    def lend(self) -> Iterator[URL]:
        """One with the schema and no rows."""
        name, connection = self._free.pop() if self._free else self._made()
        yield self._server.set(database=name)
        if self._is_empty_again(connection):
            self._free.append((name, connection))
        else:
            connection.close()
            self._order(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def __enter__(self) -> EmptyDatabases:
        return self

    def __exit__(self, *_: object) -> None:
        while self._free:
            self._free.pop()[1].close()

    def _made(self) -> tuple[str, psycopg.Connection[tuple[str]]]:
        name = f"test_{uuid.uuid4().hex}"
        self._order(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE} STRATEGY FILE_COPY")
        return name, self._connected(name)

    def _order(self, statement: str) -> None:
        with psycopg.connect(plain(self._server), autocommit=True) as connection:
            connection.execute(statement.encode())

    def _is_empty_again(self, connection: psycopg.Connection[tuple[str]]) -> bool:
        try:
            connection.execute(_END_OTHERS)
            connection.execute(_EMPTY.encode())
            return _fingerprint(connection) == self._schema
        except psycopg.Error:
            return False

    def _connected(self, name: str) -> psycopg.Connection[tuple[str]]:
        return psycopg.connect(plain(self._server.set(database=name)), autocommit=True)


def _fingerprint(connection: psycopg.Connection[tuple[str]]) -> str:
    row = connection.execute(_SCHEMA.encode()).fetchone()
    assert row is not None
    return row[0]
