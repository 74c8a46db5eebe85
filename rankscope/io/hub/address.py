"""Addresses on the hub, and what goes wrong there in words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rankscope.errors import SourceError
from rankscope.io.containers.store import printable

__all__ = ["PREFIX", "Address", "answered", "failures", "is_plain", "origin", "parse"]

PREFIX = "hf://"
_NAME = r"[\w][\w.-]{0,95}"
# A revision may hold slashes only as a pull request's, or written %2F as in the hub's own.
_ADDRESS = re.compile(
    rf"{PREFIX}(?P<repository>{_NAME}/{_NAME})"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[\w.-]+(?:%2F[\w.-]+)*))?(?:/(?P<inside>.*?))?/?",
    re.ASCII,
)
_CACHED = re.compile(
    r".*/models--(?P<repository>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})/(?P<file>.+)"
)
_STATUS = {
    401: (
        "the repository does not exist, or is private",
        "check its name; if it is private, set HF_TOKEN or log in with hf auth login",
    ),
    403: ("the hub forbids it", "accept the repository's terms on its page, then log in"),
    404: ("the hub has no such thing", "check the name, the revision and the subfolder"),
    429: ("the hub has had too many requests", "wait some minutes, or log in for a higher limit"),
}
_ELSEWHERE = ("the hub has failed", "try again later; whole files that have come are kept")


@dataclass(frozen=True)
class Address:
    """A place on the hub: ``hf://org/name[@revision][/subfolder or file]``."""

    text: str
    repository: str
    revision: str
    inside: str

    def error(self, what: str, *, expected: str, got: str, fix: str) -> SourceError:
        """Return an error about this place."""
        return SourceError(
            what,
            where=printable(self.text),
            expected=expected,
            got=printable(got)[:300],
            fix=fix,
        )


def parse(text: str) -> Address:
    """Return the parts of an address; the revision is ``main`` unless it is given.

    Raises
    ------
    SourceError
        If it is no address, or leads upwards.

    Examples
    --------
    >>> address = parse("hf://org/name@v1.0/sub/folder")
    >>> address.repository, address.revision, address.inside
    ('org/name', 'v1.0', 'sub/folder')
    """
    match = _ADDRESS.fullmatch(text)
    revision = ((match and match["revision"]) or "main").replace("%2F", "/")
    inside = (match and match["inside"]) or ""
    if match is None or not is_plain(revision) or (inside and not is_plain(inside)):
        raise SourceError(
            "this is no address on the hub",
            where=printable(text),
            expected="hf://org/name, hf://org/name@revision or hf://org/name@revision/subfolder",
            got=repr(text)[:100],
            fix="write the organisation and the name as the repository's page has them",
        )
    return Address(text, match["repository"], revision, inside)


def origin(path: str | None) -> dict[str, str]:
    """Return the ``address`` and ``commit`` of a file in the hub's cache; empty for any other.

    Examples
    --------
    >>> commit = 40 * "0"
    >>> origin(f"/home/me/hub/models--org--name/snapshots/{commit}/a.safetensors")["address"]
    'hf://org/name@0000000000000000000000000000000000000000/a.safetensors'
    """
    match = _CACHED.fullmatch((path or "").replace("\\", "/"))
    if match is None:
        return {}
    repository, commit = match["repository"].replace("--", "/"), match["commit"]
    return {"address": f"{PREFIX}{repository}@{commit}/{match['file']}", "commit": commit}


def is_plain(name: str) -> bool:
    """Whether a name is a path downwards, of printable parts."""
    parts = name.split("/")
    return name.isprintable() and not {"", ".", ".."} & set(parts) and "\\" not in name


@contextmanager
def failures(address: Address) -> Iterator[None]:
    """Turn what huggingface_hub raises into one kind of error."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except SourceError:
        raise
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise _unreached(address, error) from error
    except HfHubHTTPError as error:
        raise answered(address, error.response.status_code) from error
    # Its transport differs by version, and each has errors of its own.
    except Exception as error:
        raise address.error(
            "the transfer from the hub has failed",
            expected="the whole file, or the part of it that was asked for",
            got=_in_words(error),
            fix="try again; check the connection and the free space",
        ) from error


def answered(address: Address, status: int) -> SourceError:
    """Return the error that an answer's status means."""
    what, fix = _STATUS.get(status, _ELSEWHERE)
    return address.error(
        what,
        expected=f"revision {address.revision!r} of {address.repository}",
        got=f"the answer {status}",
        fix=fix,
    )


def _unreached(address: Address, error: Exception) -> SourceError:
    cause = error.__cause__ or error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status is not None:
        return answered(address, status)
    return address.error(
        "it is not in the cache, and the hub cannot be reached",
        expected="a connection, or an earlier download of this revision",
        got=_in_words(cause),
        fix="unset HF_HUB_OFFLINE, or check the connection and HF_ENDPOINT",
    )


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
