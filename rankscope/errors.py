"""The package's errors: five short lines that say what is wrong and what to do about it."""

from __future__ import annotations

__all__ = [
    "AdapterError",
    "BaseNeededError",
    "OutputError",
    "RankscopeError",
    "SourceError",
    "UpdateError",
    "os_reason",
    "printable",
]


class RankscopeError(Exception):
    """Base of every error that a user can mend.

    Parameters
    ----------
    what : str
        What is wrong, in the user's words.
    where : str
        The file, tensor or option.
    expected, got : str
        The two sides of the disagreement, in the same unit.
    fix : str
        One concrete action or flag.

    Examples
    --------
    >>> print(RankscopeError("no such file", where="a.safetensors", expected="a file",
    ...                      got="nothing", fix="check the path"))
    no such file
      where: a.safetensors
      expected: a file
      got: nothing
      fix: check the path
    """

    def __init__(self, what: str, *, where: str, expected: str, got: str, fix: str) -> None:
        super().__init__(what)
        # Names and values come out of files, and may command a terminal.
        self.what, self.where, self.expected, self.got, self.fix = map(
            printable, (what, where, expected, got, fix)
        )

    def __str__(self) -> str:
        lines = (
            self.what,
            f"  where: {self.where}",
            f"  expected: {self.expected}",
            f"  got: {self.got}",
            f"  fix: {self.fix}",
        )
        return "\n".join(lines)

    def parts(self) -> dict[str, str]:
        """Return the five parts, as they stand beside the rows in a JSON result."""
        return {
            "what": self.what,
            "where": self.where,
            "expected": self.expected,
            "got": self.got,
            "fix": self.fix,
        }

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling between processes.
        return _rebuild, (type(self), self.what, self.where, self.expected, self.got, self.fix)


class SourceError(RankscopeError):
    """A file, folder or object that cannot be read, or that holds something else."""


class AdapterError(RankscopeError, ValueError):
    """An adapter whose tensors or configuration contradict themselves or each other."""


class BaseNeededError(AdapterError):
    """An adapter whose updates are functions of base weights that were not given."""


class UpdateError(RankscopeError, ValueError):
    """One update that cannot be measured: not finite, or of a shape that does not fit."""


class OutputError(RankscopeError, OSError):
    """A result that cannot be written; whatever stood there before is untouched."""


def _rebuild(
    kind: type[RankscopeError], what: str, where: str, expected: str, got: str, fix: str
) -> RankscopeError:
    return kind(what, where=where, expected=expected, got=got, fix=fix)


def os_reason(error: OSError) -> str:
    """Return the operating system's own words for `error`, in lower case and without the path.

    Examples
    --------
    >>> os_reason(PermissionError(13, "Permission denied"))
    'permission denied'
    """
    return (error.strerror or str(error)).lower()


def printable(text: str) -> str:
    r"""Return `text` with what a terminal would obey written out.

    Examples
    --------
    >>> print(printable("a\x1b[2J"))
    a\x1b[2J
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
