"""Patterns of module names out of files, matched in a time that no pattern can stretch.

Python's matcher tries ways one by one: ``(a|a)*b`` takes it ages on a long name. Here all ways
advance together, as sets of places in the name. What such patterns use is understood: text,
classes, groups, alternatives and repetitions; the rest of the language is refused.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Protocol

__all__ = ["NameRule"]

_LENGTH, _DEPTH, _COUNT = 512, 16, 512
_SINGLE = r"(?:\\[dDwWsS]|\\[^a-zA-Z0-9]|[^\\\[\](){}*+?|^$])"
# Text at a stretch, as far as no repetition takes the last of it.
_STRETCH = re.compile(rf"(?:{_SINGLE}(?![*+?{{]))+")
_PIECE = re.compile(rf"{_SINGLE}|\[\^?\]?(?:\\.|[^\]\\\[])*\]|\^|\$|\\[bBAZ]")
_REPETITION = re.compile(r"(?:([*+?])|\{(\d{0,3})(,?)(\d{0,3})\})\??")


class NameRule:
    r"""A regular expression that is a module's whole name or its end, as PEFT matches it.

    Raises
    ------
    ValueError
        If the expression is longer than 512 characters, broken, or uses more of the language
        than is understood; a repetition within a repetition is too much as well.

    Examples
    --------
    >>> rule = NameRule(r"layers\.\d+\.(q|v)_proj")
    >>> rule.matches("model.layers.12.q_proj"), rule.matches("sublayers.12.q_proj")
    (True, False)
    """

    def __init__(self, expression: str) -> None:
        if len(expression) > _LENGTH:
            raise ValueError(f"{len(expression)} characters, more than {_LENGTH}")
        # Nearly all are plain, and a source may have one for every module.
        plain = _STRETCH.fullmatch(expression.removeprefix("^"))
        self._rule = _Plain(expression) if plain else _Ending(expression)

    def matches(self, module: str) -> bool:
        """Return whether the expression is the name, or its end after a dot."""
        return self._rule.matches(module)


class _Plain:
    def __init__(self, expression: str) -> None:
        self._pattern = _compiled(rf"(?:.*\.)?{expression}$")

    def matches(self, module: str) -> bool:
        return self._pattern.match(module) is not None


class _Ending:
    def __init__(self, expression: str) -> None:
        parser = _Parser(expression)
        self._node = parser.choice()
        if parser.rest:
            raise parser.error()

    def matches(self, module: str) -> bool:
        starts = {0, *(dot.end() for dot in re.finditer(r"\.", module))}
        return len(module) in self._node.ends(module, starts)


class _Node(Protocol):
    def ends(self, text: str, starts: set[int]) -> set[int]:
        """Return every place where a match that begins at one of `starts` can end."""


@dataclass(frozen=True)
class _Piece:
    """Text, a class or an anchor: never more than one way to match at one place."""

    pattern: re.Pattern[str]

    def ends(self, text: str, starts: set[int]) -> set[int]:
        found = (self.pattern.match(text, start) for start in starts)
        return {match.end() for match in found if match}


@dataclass(frozen=True)
class _Row:
    parts: tuple[_Node, ...]

    def ends(self, text: str, starts: set[int]) -> set[int]:
        for part in self.parts:
            starts = part.ends(text, starts)
        return starts


@dataclass(frozen=True)
class _Choice:
    ways: tuple[_Node, ...]

    def ends(self, text: str, starts: set[int]) -> set[int]:
        return set().union(*(way.ends(text, starts) for way in self.ways))


@dataclass(frozen=True)
class _Repeat:
    part: _Node
    least: int
    most: int | None

    def ends(self, text: str, starts: set[int]) -> set[int]:
        for _ in range(self.least):
            starts = self.part.ends(text, starts)
        reached, new, count = set(starts), starts, self.least
        while new and count != self.most:
            new = self.part.ends(text, new) - reached
            reached |= new
            count += 1
        return reached


class _Parser:
    """What is left of an expression; every method takes its part from the front."""

    def __init__(self, expression: str) -> None:
        self.rest = expression
        self.depth = 0
        self.repetitions = 0

    def error(self) -> ValueError:
        return ValueError(f"{self.rest[:40]!r}, which is broken or more than is understood")

    def choice(self) -> _Node:
        ways = [self.row()]
        while self.take("|"):
            ways.append(self.row())
        return ways[0] if len(ways) == 1 else _Choice(tuple(ways))

    def row(self) -> _Node:
        parts = []
        while self.rest and self.rest[0] not in "|)":
            parts.append(self.part())
        return _Row(tuple(parts))

    def part(self) -> _Node:
        before = self.repetitions
        part = self.group() if self.take("(") else self.piece()
        match = _REPETITION.match(self.rest)
        if match is None:
            return part
        least, most = _range(match)
        if most is None or most > 1:
            if self.repetitions > before:
                raise ValueError("a repetition within a repetition")
            self.repetitions += 1
        if (most is not None and least > most) or max(least, most or 0) > _COUNT:
            raise self.error()
        self.rest = self.rest[match.end() :]
        return _Repeat(part, least, most)

    def group(self) -> _Node:
        self.take("?:")
        self.depth += 1
        if self.depth > _DEPTH:
            raise ValueError(f"groups more than {_DEPTH} deep")
        inner = self.choice()
        if not self.take(")"):
            raise self.error()
        self.depth -= 1
        return inner

    def piece(self) -> _Node:
        match = _STRETCH.match(self.rest) or _PIECE.match(self.rest)
        if match is None:
            raise self.error()
        self.rest = self.rest[match.end() :]
        return _Piece(_compiled(match[0]))

    def take(self, text: str) -> bool:
        found = self.rest.startswith(text)
        self.rest = self.rest.removeprefix(text)
        return found


def _range(match: re.Match[str]) -> tuple[int, int | None]:
    """Return the least and the most of a repetition's counts; None for no end."""
    sign, least, comma, most = match.groups()
    if sign:
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
    if not (least or most):
        raise ValueError(f"{match[0]!r}, which counts nothing")
    low = int(least or 0)
    return low, (int(most) if most else None) if comma else low


def _compiled(text: str) -> re.Pattern[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of classes that a later Python may read otherwise
        try:
            return re.compile(text)
        except (re.error, FutureWarning, DeprecationWarning) as error:
            raise ValueError(str(error)) from error
