"""Compiled statements that the engines of a process share.

Each test has engines of its own, and SQLAlchemy compiles each statement once for each engine: an eighth of
the processor time of all tests.
"""

from collections.abc import Hashable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Dialect, Engine, Executable
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.util import LRUCache

from jobhandle_celery.store import direct_psycopg

_Shared = tuple[Dialect, LRUCache[Any, Any]]

_compile: Any = ClauseElement._compile_w_cache
_Prepared: Any = direct_psycopg._Prepared
_by_kind: dict[Hashable, _Shared] = {}
_by_dialect: WeakKeyDictionary[Dialect, _Shared] = WeakKeyDictionary()
_prepared: dict[Hashable, Any] = {}


def share_compiled_statements() -> None:
    """Let engines whose dialects are alike share what was compiled, until the process ends."""
    ClauseElement._compile_w_cache = _compile_once  # type: ignore[method-assign,assignment]
    direct_psycopg._Prepared = _prepare_once  # type: ignore[assignment,misc]


def _compile_once(
    statement: ClauseElement, dialect: Dialect, *, compiled_cache: Any, **options: Any
) -> tuple[Any, ...]:
    # SQLAlchemy's key has the dialect itself. A dialect is complete once it knows the server's version.
    if compiled_cache is not None and dialect.server_version_info:
        shared = _by_dialect.get(dialect)
        if shared is None:
            shared = _by_dialect[dialect] = _by_kind.setdefault(_kind(dialect), (dialect, LRUCache(2000)))
        dialect, compiled_cache = shared
    compiled: tuple[Any, ...] = _compile(statement, dialect, compiled_cache=compiled_cache, **options)
    return compiled


def _prepare_once(statement: Executable, engine: Engine, schemas: Mapping[None, str] | None) -> Any:
    key = (statement, _kind(engine.dialect), tuple((schemas or {}).values()))
    if key not in _prepared:
        _prepared[key] = _Prepared(statement, engine, schemas)
    return _prepared[key]


def _kind(dialect: Dialect) -> Hashable:
    """Return all that a compiled statement may depend on: the settings of a dialect."""
    settings = {
        name: repr(value)
        for name, value in vars(dialect).items()
        if value is None or isinstance(value, bool | int | str | tuple | type) or name.endswith("serializer")
    }
    return type(dialect), frozenset(settings.items())
