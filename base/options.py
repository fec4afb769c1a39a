"""The machinery under args.py: a table of options made from dataclasses, and what is made from the table.

That is the conversion and check of every value, config files, the parser of the command line with its `--help`, the
command line that makes given options again, and the page docs/options.md. No option is known here by its name.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ..utils import UserError, keep_secret

# --- one option -------------------------------------------------------------------------------------------------------


def option(
    default: Any,
    help: str,
    *,
    default_text: str | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    parse: Callable[[str], Any] | None = None,
    metavar: str | None = None,
    commands: tuple[str, ...] | None = None,
    command: str | None = None,
    needs_name: bool = True,
    recorded: bool = True,
    on_resume: bool = False,
    per_machine: bool = False,
    inherited: str = "",
    searchable: bool | None = None,
    secret: bool = False,
) -> Any:
    """A dataclass field that is an option of the command line.

    Args:
        default: its value where the user gives none; None where the program chooses.
        help: one sentence that says what the option does.
        default_text: what the program chooses where the default is None.
        low, high, above: the range of a number; `low` and `high` are allowed values, `above` is not.
        choices: the values of a text, where only these are allowed.
        parse: makes the value from a text, or raises ValueError with what is wrong.
        metavar: the placeholder of the value in `--help`.
        commands: the commands that read the option; None: those of its group (see `OptionTable`).
        command: the command that the option asks for, where it asks for one.
        needs_name: whether that command needs `--name`.
        recorded: whether the option is a part of what a run is, and so written into the run's folder.
        on_resume: whether a run that is resumed may have another value than it began with.
        per_machine: whether the machines of one search may have different values.
        inherited: what a run that starts from a loaded run does: "default": it takes over the loaded run's value unless
            the user gives another; "fixed": the value can't be changed any more; "": it keeps its own.
        searchable: whether a search may vary the option; None: as its group says.
        secret: whether it is a URL that may hold a password, which is never shown and never written.
    """
    metadata = {name: value for name, value in locals().items() if name != "default" and value is not None}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Option:
    """One option as the table knows it: the arguments of `option`, its name, its group and its type.

    kind: int, float, bool or str; of each word where the option takes `several`.
    """

    name: str
    group: str
    kind: type
    several: bool
    default: Any
    help: str
    commands: tuple[str, ...]
    default_text: str | None = None
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] | None = None
    parse: Callable[[str], Any] | None = None
    metavar: str | None = None
    command: str | None = None
    needs_name: bool = True
    recorded: bool = True
    on_resume: bool = False
    per_machine: bool = False
    inherited: str = ""
    searchable: bool = False
    secret: bool = False

    @property
    def is_switch(self) -> bool:
        """Whether it is turned on by --NAME and off by --no_NAME, and takes no value."""
        return self.kind is bool

    @property
    def placeholder(self) -> str:
        """What stands for its value in `--help` and in the docs."""
        if self.choices:
            return "{" + ",".join(self.choices) + "}"
        return self.metavar or {int: "N", float: "X"}.get(self.kind, self.name.upper())

    @property
    def shown_default(self) -> str:
        """The default as the user reads it; empty where there is none."""
        if self.default is None or self.default == ():
            return self.default_text or ""
        if self.is_switch:
            return "on" if self.default else "off"
        return str(self.default)

    def convert(self, value: Any) -> Any:
        """A value from the command line or a file, as the option's type and within its limits. Raises UserError."""
        if self.several:
            return self._converted_words(value)
        if self.is_switch:
            if not isinstance(value, bool):
                raise UserError(f"--{self.name} is on or off: write true or false, not {value!r}")
            return value
        if isinstance(value, (bool, dict, list)):
            raise UserError(f"--{self.name} takes a {self.kind.__name__}, not {value!r}")
        if value == "":
            raise UserError(f"--{self.name} is empty; give it a value or leave it out")
        if self.parse:
            try:
                return self.parse(str(value))
            except ValueError as error:
                raise UserError(f"--{self.name} {value}: {error}") from None
        return self._converted_number_or_text(value)

    def _converted_number_or_text(self, value: Any) -> Any:
        try:
            converted = self.kind(str(value))
        except ValueError:
            wanted = {int: "a whole number", float: "a number"}[self.kind]
            raise UserError(f"--{self.name} takes {wanted}, not {value!r}") from None
        if self.choices and converted not in self.choices:
            raise UserError(f"--{self.name} {value} is unknown; choose from {', '.join(self.choices)}")
        self._check_range(converted)
        return converted

    def _converted_words(self, value: Any) -> tuple[Any, ...]:
        words = [value] if isinstance(value, str) else value
        if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) and word for word in words):
            raise UserError(f"--{self.name} takes a list of words, not {value!r}")
        try:
            return tuple((self.parse or str)(word) for word in words)
        except ValueError as error:
            raise UserError(f"--{self.name} {' '.join(words)}: {error}") from None

    def _check_range(self, value: Any) -> None:
        low, high, above = self.low, self.high, self.above
        # Written so that NaN fails as well.
        right = (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)
        if not right or (isinstance(value, float) and not abs(value) < float("inf")):
            parts = [("at least", low), ("above", above), ("at most", high)]
            wanted = " and ".join(f"{word} {limit:g}" for word, limit in parts if limit is not None)
            raise UserError(f"--{self.name} {value} is out of range: it must be {wanted or 'finite'}")


def share(text: str) -> float:
    """The fraction that `0.03` or `3%` means. A bare number of 1 or more is ambiguous: ValueError."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise ValueError("takes a share such as 0.03 or 3%") from None
    if not text.endswith("%") and value >= 1 and "." not in text:
        raise ValueError(f"would mean {100 * value:g}% of the images; write {text}% for a percentage")
    if not 0 <= value <= 1:
        raise ValueError("must lie between 0% and 100%")
    return value


FORBIDDEN = '/\\:*?"<>|'  # in the name of a file on Windows
RESERVED = frozenset(("con", "prn", "aux", "nul", "conin$", "conout$")) | {
    f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"
}


def is_reserved(name: str) -> bool:
    """Whether Windows takes a file of that name for a device, whatever follows a point."""
    return name.partition(".")[0].strip().lower() in RESERVED


def folder_name(text: str) -> str:
    """A text that can be the name of one folder on every system; ValueError for any other."""
    if not text or text in (".", "..") or any(sign in FORBIDDEN or sign < " " for sign in text) or text != text.strip():
        raise ValueError(f"must be a plain folder name, without slashes and any of {FORBIDDEN[1:]}")
    if text.endswith(".") or is_reserved(text):
        raise ValueError("can't be the name of a folder on Windows; add a word to it")
    if any(0xD800 <= ord(sign) <= 0xDFFF for sign in text):  # bytes of the command line that are no text
        raise ValueError("must be text in UTF-8")
    return text


# --- the table --------------------------------------------------------------------------------------------------------


class OptionTable:
    """Every option by its name, in the order of the groups.

    groups: dataclasses of `option` fields, by the name that the whole has for them; the docstring of each is its title,
    and its class variable DEFAULTS holds arguments of `option` for all fields that don't say otherwise.
    """

    def __init__(self, groups: Mapping[str, type]) -> None:
        self.groups = dict(groups)
        self.options = {option.name: option for option in self._made()}

    def _made(self) -> Iterator[Option]:
        for group, fields in self.groups.items():
            hints = typing.get_type_hints(fields)
            for f in dataclasses.fields(fields):
                several, kind = typing.get_origin(hints[f.name]) is tuple, hints[f.name]
                if several or isinstance(kind, types.UnionType):
                    kind = next(t for t in typing.get_args(kind) if t is not types.NoneType)
                place: dict[str, Any] = {"group": group, "kind": kind, "several": several, "default": f.default}
                yield Option(name=f.name, **place, **{**getattr(fields, "DEFAULTS", {}), **f.metadata})

    def __getitem__(self, name: str) -> Option:
        """The option of that name. Raises UserError with the name that comes closest."""
        if name not in self.options:
            raise UserError(self.unknown(name))
        return self.options[name]

    def __iter__(self) -> Iterator[Option]:
        return iter(self.options.values())

    def unknown(self, name: str) -> str:
        """What to say about a name that is no option."""
        near = difflib.get_close_matches(name, self.options, n=1)
        return f"there is no option --{name}" + (f"; did you mean --{near[0]}?" if near else "; see --help")

    def names(self, wanted: Callable[[Option], bool]) -> frozenset[str]:
        """The names of the options of which this is true."""
        return frozenset(option.name for option in self if wanted(option))

    def of_group(self, group: str) -> list[Option]:
        """The options of a group, in its order."""
        return [option for option in self if option.group == group]

    def converted(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """These values, converted and checked one by one; None, which stands for the default, is left out."""
        chosen = {name: self[name] for name in values}  # an unknown name is worse than a wrong value
        for name, option in chosen.items():
            if option.secret:
                keep_secret(str(values[name]))
        return {name: option.convert(values[name]) for name, option in chosen.items() if values[name] is not None}

    def turned_on(self, values: Mapping[str, Any]) -> set[str]:
        """The names of those values that ask for something: neither off nor the default."""
        off = (False, 0, 0.0, ())
        return {name for name, value in values.items() if value not in off and value != self[name].default}


class Rule(NamedTuple):
    """Options that `option` excludes, and options of which it `needs` at least one beside it."""

    option: str
    excludes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


def check_rules(rules: Sequence[Rule], on: Collection[str]) -> None:
    """Apply the rules to the options that are turned on. Raises UserError."""
    for name, excludes, needs in rules:
        if name not in on:
            continue
        for other in excludes:
            if other in on:
                raise UserError(f"--{name} and --{other} exclude each other; leave one out")
        if needs and not set(on) & set(needs):
            raise UserError(f"--{name} needs {' or '.join('--' + other for other in needs)} beside it")


# --- from and to words ------------------------------------------------------------------------------------------------


def read_config(path: Path, table: OptionTable) -> dict[str, Any]:
    """The values of a JSON or TOML file (by its suffix). Raises UserError."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("not a file")
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--config {path} can't be read: {error}; give a JSON or TOML file") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path} must hold names and values, not a {type(values).__name__}")
    for name in values:
        if name not in table.options:
            raise UserError(f"--config {path}: {table.unknown(name)}")
    return values


def with_config(given: Mapping[str, Any], of_file: Mapping[str, Any], rules: Sequence[Rule]) -> dict[str, Any]:
    """The file's values under those that are given: without those that a given one overrides or excludes."""
    pairs = {frozenset((name, other)) for name, excludes, _ in rules for other in excludes}
    kept = {n: v for n, v in of_file.items() if not any(frozenset((n, other)) in pairs for other in given)}
    return kept | dict(given)


def words_of(table: OptionTable, values: Mapping[str, Any], said: Container[str]) -> list[str]:
    """The command line that gives these values; a default only where the name is among `said`."""
    words: list[str] = []
    for name, value in values.items():
        option = table[name]
        if value is None or value == () or (value == option.default and name not in said):
            continue
        if option.is_switch:
            words.append(f"--{name}" if value else f"--no_{name}")
        elif option.several:
            words += [f"--{name}", *value]
        else:
            words += [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", str(value)]
    return words


class _Switch(argparse.Action):
    """--NAME and --no_NAME in one line of `--help`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, option_string == f"--{self.dest}")


class _Parser(argparse.ArgumentParser):
    """argparse, whose errors are the program's own."""

    table: OptionTable

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: --"):
            message = self.table.unknown(message.split()[2].split("=")[0].removeprefix("--"))
        raise UserError(message.replace("argument --", "--"))


def parser_of(table: OptionTable, *, usage: str, about: str, version: str) -> argparse.ArgumentParser:
    """The parser of the table; `--help` shows the usage, `about` as it stands, and the groups."""
    parser = _Parser(
        prog=usage.split()[0], usage=usage, description=about, allow_abbrev=False, add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.table = table
    sections = {name: parser.add_argument_group(group.__doc__) for name, group in table.groups.items()}
    first = next(iter(sections.values()))
    first.add_argument("-h", "--help", action="help", help="Show this help and end.")
    first.add_argument("--version", action="version", version=version, help="Show the version and end.")
    for option in table:
        add, name = sections[option.group].add_argument, option.name
        default = f" Default: {option.shown_default}." if option.shown_default else ""
        shown = (option.help + default).replace("%", "%%")
        if option.is_switch and option.default is False:  # --no_NAME only turns off what a config file turned on
            add(f"--{name}", action=_Switch, dest=name, nargs=0, help=shown)
            add(f"--no_{name}", action=_Switch, dest=name, nargs=0, help=argparse.SUPPRESS)
        elif option.is_switch:
            add(f"--{name}", f"--no_{name}", action=_Switch, dest=name, nargs=0, help=shown)
        else:
            several: dict[str, Any] = {"nargs": "+", "action": "extend"} if option.several else {}
            add(f"--{name}", metavar=option.placeholder, help=shown, **several)
    return parser


# --- docs/options.md --------------------------------------------------------------------------------------------------


def as_page(table: OptionTable, introduction: str, commands: Sequence[str]) -> str:
    """The table in Markdown, a section a group; `commands` are all that there are, in the order to show them in."""
    sections = [introduction.strip()]
    for name, group in table.groups.items():
        head = ["| option | default | what it does | commands that read it |", "| --- | --- | --- | --- |"]
        rows = [_row(option, commands) for option in table.of_group(name)]
        sections += [f"## {group.__doc__}", "\n".join([*head, *rows])]
    return "\n\n".join(sections) + "\n"


def _row(option: Option, commands: Sequence[str]) -> str:
    usage = f"`--{option.name} {option.placeholder}`" + (" ..." if option.several else "")
    if option.is_switch:
        usage = f"`--{option.name}`" + ("" if option.default is False else f", `--no_{option.name}`")
    plain = option.default_text is not None or option.is_switch or not option.shown_default
    default = option.shown_default if plain else f"`{option.shown_default}`"
    read_by = [command for command in commands if command in option.commands]
    return f"| {usage} | {default} | {option.help} | {'all' if len(read_by) == len(commands) else ', '.join(read_by)} |"
