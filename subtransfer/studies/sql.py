"""Conditions and queries on the table of runs, by duckdb.

A condition is one SQL expression that is true or false of a row, such as `objective = 'sft' and
base.width in (32, 64) and not purity is null`. Names of columns need no quotes for their dots, and
those of config fields no "config.". duckdb's own parser reads it; here only the names in the
parsed tree are replaced by those of columns. The database holds nothing but the rows, and neither
conditions nor queries can reach files, the network or other settings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from subtransfer.runtime.errors import UserError
from subtransfer.runtime.field import nearest

# Deeper than any condition that a person writes. duckdb's JSON of a tree has at most 256 levels,
# of which an expression takes two.
_MAX_DEPTH = 100
_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def connect() -> duckdb.DuckDBPyConnection:
    """Opens an empty database in memory that can reach nothing else."""
    connection = duckdb.connect(config={"enable_external_access": "false"})
    # Else a query could read any Python variable of its caller that is a data frame.
    connection.execute("set python_enable_replacements = false")
    connection.execute(f"set max_expression_depth = {_MAX_DEPTH}")
    # Last, as from here a query cannot take the settings back.
    connection.execute("set lock_configuration = true")
    return connection


def query(table: pa.Table, sql: str) -> pa.Table:
    """Answers a query over the table `runs`.

    Raises:
      UserError: the query cannot be answered.
    """
    with connect() as connection:
        connection.register("runs", table)
        try:
            return connection.sql(sql).to_arrow_table()
        except (duckdb.Error, RuntimeError, AttributeError) as error:
            raise UserError(f"--sql: {_first_line(error)}") from error


def resolve(name: str, columns: Mapping[str, type]) -> str:
    """Returns a column's full name.

    Args:
      name: of a column; of a config field also without its "config.".
      columns: all there are.

    Raises:
      UserError: there is no such column.
    """
    for full in (name, f"config.{name}"):
        if full in columns:
            return full
    raise UserError(f"There is no column {name!r}; the nearest is {nearest(name, columns)!r}.")


class Condition:
    """A condition on rows; a row meets it only if it is true, as in SQL.

    Args:
      text: the SQL expression; an empty one is met by every row.
      columns: the type of each column, of bool, int, float and str.

    Raises:
      UserError: the text is no condition on these columns.
    """

    def __init__(self, text: str, columns: Mapping[str, type]):
        self._text = text
        self._connection = connect()
        self._expression = "true"
        self._names: list[str] = []
        if text.strip():
            tree = self._parsed(text)
            self._names = _resolve_names(tree, columns, self._error)
            self._expression = self._unparsed(tree)
        # With the row's place the table has its rows even where the condition names no column.
        fields: dict[str, pa.DataType] = {"#": pa.int64()}
        for name in self._names:
            fields[name] = _TYPES[columns[name]]
        self._schema = pa.schema(fields)
        # Tried on no rows, so that a condition that cannot be used is refused before any work.
        self.met([])

    def met(self, rows: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Returns whether each row meets the condition; what a row lacks is null.

        Raises:
          UserError: the condition is not true or false, or cannot be computed of these rows.
        """
        cells = [pa.array(range(len(rows)), pa.int64())]
        for name in self._names:
            values = [row.get(name) for row in rows]
            cells.append(pa.array(values, self._schema.field(name).type))
        self._connection.register("runs", pa.Table.from_arrays(cells, schema=self._schema))
        # As a column and not after `where`, which takes texts and numbers for truths.
        sql = f'select ({self._expression}) as met from runs order by "#"'
        try:
            answer = self._connection.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise self._error(_first_line(error)) from error
        finally:
            self._connection.unregister("runs")
        if answer.num_rows != len(rows):
            raise self._error("it is about all rows and not about each")
        if not pa.types.is_boolean(answer.schema.field("met").type):
            raise self._error("it is neither true nor false")
        # Null, which follows from what a row lacks, is not true.
        return [value is True for value in answer.column("met").to_pylist()]

    def _error(self, why: str) -> UserError:
        why = " ".join(why.split())
        shown = self._text if len(self._text) <= 200 else f"{self._text[:200]}..."
        return UserError(f"The condition {shown!r} cannot be used: {why.rstrip('.')}.")

    def _serialised(self, sql: str) -> Any:
        answer = self._connection.execute("select json_serialize_sql(?)", [sql]).fetchall()
        return json.loads(answer[0][0])

    def _parsed(self, text: str) -> Any:
        """The tree of the expression, as duckdb's parser gives it."""
        try:
            # A line break ends a comment at the text's end.
            found = self._serialised(f"select\n{text}\n")
            statement = found["statements"][0]["node"] if not found["error"] else {}
        except (duckdb.Error, RecursionError, KeyError) as error:
            raise self._error(_first_line(error)) from error
        if found["error"]:
            message = found["error_message"]
            if "expression depth" in message:
                message = f"it is nested more than {_MAX_DEPTH} levels deep"
            raise self._error(message)
        # All but the one selected expression must be as in a query of nothing else: no `from`, no
        # further statement, no `group by`.
        plain = self._serialised("select true")
        selected = statement.get("select_list", [])
        plain["statements"][0]["node"]["select_list"] = selected
        if found != plain or len(selected) != 1 or selected[0]["alias"]:
            raise self._error("it must be one expression that is true or false of a row")
        return selected[0]

    def _unparsed(self, tree: Any) -> str:
        """The tree as SQL."""
        whole = self._serialised("select true")
        whole["statements"][0]["node"]["select_list"] = [tree]
        command = "select json_deserialize_sql(?)"
        answer = self._connection.execute(command, [json.dumps(whole)]).fetchall()
        return answer[0][0].removeprefix("SELECT ")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """All objects in a tree of JSON, outer ones first."""
    left = [tree]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            yield item
            left += item.values()
        elif isinstance(item, list):
            left += item


def _resolve_names(tree: Any, columns: Mapping[str, type], wrong: Any) -> list[str]:
    """Replaces the names in a tree by those of columns; returns these.

    Args:
      tree: as `Condition._parsed` returns it; changed in place.
      columns: the type of each.
      wrong: makes an error of a reason.
    """
    found: dict[str, None] = {}
    for node in _nodes(tree):
        kind = node.get("class")
        # A row must meet a condition or not whatever other rows there are.
        if kind in ("SUBQUERY", "WINDOW", "STAR", "PARAMETER", "LAMBDA"):
            raise wrong("it must be one expression about the columns of a row, without queries")
        if kind == "COLUMN_REF":
            name = resolve(".".join(node["column_names"]), columns)
            node["column_names"] = [name]
            found[name] = None
    return list(found)


def _first_line(error: BaseException) -> str:
    # The others show where in the query it is, with an arrow that no longer points at anything.
    return str(error).partition("\n")[0]
