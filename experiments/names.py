"""Looks things up by a name that a user gave."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")


def lookup(kind: str, table: Mapping[str, Value], name: str) -> Value:
    """The entry of this name.

    Args:
      kind: what the entries are, for the error.
      table: the entries.
      name: given by the user.

    Raises:
      ValueError: if there is none; the message suggests the nearest name and lists all names.

    >>> lookup("colour", {"red": 1, "green": 2}, "gren")
    Traceback (most recent call last):
    ...
    ValueError: unknown colour 'gren'; did you mean 'green'? There are: red, green
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"unknown {kind} {name!r}{hint} There are: {', '.join(table)}")
