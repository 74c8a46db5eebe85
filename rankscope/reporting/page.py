"""A report as one HTML file that loads nothing and runs nothing but its own lines."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from rankscope.errors import printable
from rankscope.reporting.document import Document
from rankscope.reporting.drawing import HEIGHT, WIDTH, palette
from rankscope.reporting.numbers import short_name
from rankscope.reporting.vector import inline_svg

__all__ = ["page"]

_FEW = 16  # modules that are listed without being grouped by layer


def page(document: Document) -> str:
    """Return a report as HTML.

    Everything that a file has named is text: it is escaped, and what is not printable is
    written out. The page's own policy forbids every other script, style and address, so that
    nothing of what it shows can run, load or send anything.
    """
    style, script = (_own(name) for name in ("page.css", "page.js"))
    figures = [f for section in document.sections for part in section.parts for f in part.figures]
    drawn = {
        id(figure): Markup(inline_svg(figure.svg, f"f{n}", figure.label))
        for n, figure in enumerate(figures, 1)
    }
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            document=document,
            style=Markup(style),
            script=Markup(script),
            policy=_policy(style, script),
            drawn=drawn,
            identity=id,
            width=WIDTH,
            height=HEIGHT,
            scale=["#{:02x}{:02x}{:02x}".format(*colour) for colour in palette()[::3]],
            grouped=sum(len(group.modules) for group in document.groups) > _FEW,
        )
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("rankscope.reporting"),
        autoescape=True,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["short"] = short_name
    environment.filters["unbroken"] = _unbroken
    return environment


def _unbroken(text: str) -> Markup:
    """Keep a percent sign in the line of its number."""
    # Escaped and written out first: `_shown` would write out the space itself.
    return escape(printable(text)).replace(" %", "\u00a0%")


def _shown(value: Any) -> Any:
    """Write out what is not printable, such as a mark that turns the direction of writing."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@lru_cache(maxsize=2)
def _own(name: str) -> str:
    return (files("rankscope.reporting") / "templates" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Return the policy: this style and this script by their hashes, pictures of the page."""
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
