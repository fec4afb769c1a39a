"""What turns values into HTML: jinja2 with autoescape, so that no name of a class or a file can pass for markup."""

from __future__ import annotations

import functools
import importlib.resources
import re
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

if TYPE_CHECKING:
    import jinja2


@functools.cache
def environment() -> jinja2.Environment:
    """The templates of this folder. Every value is escaped except `Markup`; a name that is not given is an error."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(package_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["unbroken"] = unbroken
    return made


def package_file(name: str) -> str:
    """The text of a file of this folder, wherever the package lies."""
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def printable(value: object) -> str:
    """Anything as text in which what no font can show is replaced; `Markup` as it is."""
    if isinstance(value, Markup):
        return value
    line = str(value).encode("utf-8", "replace").decode()
    return "".join(sign if sign.isprintable() or sign in "\n\t" else "\ufffd" for sign in line)


def text(value: object) -> Markup:
    """Anything as text of a page: markup in it is shown and has no effect."""
    return escape(printable(value))


def unbroken(value: object) -> Markup:
    """Anything as text in which no line ends within the name of an option, where a browser would break it."""
    return Markup(re.sub(r"--\w+", r'<span class="option">\g<0></span>', str(text(value))))
