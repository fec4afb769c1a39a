"""Whether what a file holds is what the program writes there: every field by its name, with its type."""

from __future__ import annotations

import math
from typing import Any

WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "names and values"}


def fault(value: Any, wanted: Any, name: str = "") -> str | None:
    """What is wrong with a value, beginning with the name of its field; None where it is as wanted.

    wanted: a type (a number must be finite, a whole one not negative); a function, whose docstring says what its value
    must be; a tuple of alternatives; [x], a list of x; a dict of what belongs to each name, where a name that ends with
    `?` may be missing and that of `str` stands for all others; or the value itself.
    """
    if isinstance(wanted, tuple):
        faults = [fault(value, one, name) for one in wanted]
        return None if None in faults else faults[-1]
    if isinstance(wanted, dict):
        return _fault_of_names(value, wanted, name)
    if isinstance(wanted, list):
        if not isinstance(value, (list, tuple)):
            return f"{name or 'it'} is {_shown(value)}, not a list"
        return next(filter(None, (fault(one, wanted[0], f"{name}[{i}]") for i, one in enumerate(value))), None)
    if _is(value, wanted):
        return None
    what = WORDS.get(wanted) or (wanted.__doc__ if callable(wanted) else repr(wanted))
    return f"{name or 'it'} is {_shown(value)}, not {what}"


def _fault_of_names(value: Any, wanted: dict[Any, Any], name: str) -> str | None:
    if not isinstance(value, dict):
        return f"{name or 'it'} is {_shown(value)}, not {WORDS[dict]}"
    below = f"{name}." if name else ""
    fields = {key.removesuffix("?"): one for key, one in wanted.items() if key is not str}
    missing = next((key for key in fields if key in wanted and key not in value), None)
    if missing is not None:
        return f"{below}{missing} is missing"
    for key, one in value.items():
        if not isinstance(key, str):
            return f"{below}{key!r:.40} is no name"
        found = fault(one, fields.get(key, wanted.get(str, object)), f"{below}{key}")
        if found is not None:
            return found
    return None


def _is(value: Any, wanted: Any) -> bool:
    if wanted is object:
        return True
    if not isinstance(wanted, type):
        return bool(wanted(value)) if callable(wanted) else type(value) is type(wanted) and value == wanted
    kind: Any = type(value)
    if kind is not wanted:
        return False
    return math.isfinite(value) if wanted is float else value >= 0 if wanted is int else True


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{str(getattr(value, 'dtype', '')).removeprefix('torch.')} {list(shape)}"
    return f"{value!r:.40}" if isinstance(value, (int, float, str, type(None))) else f"a {type(value).__name__}"
