"""One file on the hub: parts of it by range requests, or all of it through the hub's cache."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rankscope.errors import SourceError
from rankscope.io.containers.store import printable
from rankscope.io.hub.address import PREFIX, Address, answered, failures
from rankscope.io.hub.transport import following

__all__ = ["RangesIgnoredError", "RemoteFile"]

# Between attempts, in seconds.
_WAITS = (0.5, 1.0, 2.0)
_BUSY = (408, 429, 500, 502, 503, 504)


class RangesIgnoredError(Exception):
    """The server sends whole files only; nothing of the body has been read."""


class _BusyError(Exception):
    """An answer that may be another one soon."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class RemoteFile:
    """A file of one commit; picklable, it holds no connection and no token.

    Attributes
    ----------
    address : Address
        Where it was looked for.
    commit, name : str
        What it is; the content of the two never changes.
    size : int or None
        In bytes, where the hub says it.
    digest : str or None
        sha256 of the content, where the hub says it.
    """

    address: Address
    commit: str
    name: str
    size: int | None = None
    digest: str | None = None

    @property
    def label(self) -> str:
        """Its address as a user would write it."""
        given = self.address.revision
        revision = "" if given == "main" else f"@{given.replace('/', '%2F')}"
        return printable(f"{PREFIX}{self.address.repository}{revision}/{self.name}")

    @property
    def pinned(self) -> str:
        """Its address with the commit."""
        return f"{PREFIX}{self.address.repository}@{self.commit}/{self.name}"

    def cached(self) -> Path | None:
        """Return where the whole file lies in the hub's cache, if it does."""
        import huggingface_hub

        found = huggingface_hub.try_to_load_from_cache(
            self.address.repository, self.name, revision=self.commit
        )
        return Path(found) if isinstance(found, str) else None

    def download(self, revision: str | None = None) -> Path:
        """Return the local path of the whole file, fetched if the hub's cache lacks it.

        By the revision's name where that is given, so that the cache can tell offline which
        commit it was.
        """
        import huggingface_hub

        with failures(self.address):
            path = huggingface_hub.hf_hub_download(
                self.address.repository, self.name, revision=revision or self.commit
            )
        return Path(path)

    def read(self, start: int, stop: int) -> tuple[bytearray, int]:
        """Return the bytes from `start` up to `stop`, or to the end, and the file's size.

        Where a transfer breaks off the rest is asked for again.

        Raises
        ------
        RangesIgnoredError
            If the server would send the whole file.
        SourceError
            If it refuses, fails, or answers something else than was asked.
        """
        content, size = bytearray(), self.size
        for wait in (*_WAITS, None):
            try:
                size = self._append(content, start, stop, size)
                missing = min(stop, size) - start - len(content)
                if not missing:
                    return content, size
                raise ConnectionError(f"the transfer broke off {missing:,} bytes early")
            except (SourceError, RangesIgnoredError):
                raise
            except _BusyError as busy:
                if wait is None:
                    raise answered(self.address, busy.status) from None
            except Exception:
                if wait is None:
                    with failures(self.address):
                        raise
            time.sleep(wait or 0)
        raise AssertionError("the last attempt returns or raises")

    def _append(self, content: bytearray, start: int, stop: int, size: int | None) -> int:
        """Append what comes of one request; return the file's size."""
        first = start + len(content)
        with following(self.address, self._url(), f"bytes={first}-{stop - 1}") as answer:
            if answer.status == 200:
                raise RangesIgnoredError
            if answer.status in _BUSY:
                raise _BusyError(answer.status)
            if answer.status != 206:
                raise answered(self.address, answer.status)
            size = self._checked(answer.content_range, first, stop, size)
            wanted = min(stop, size) - start
            for chunk in answer.chunks():
                content += chunk[: wanted - len(content)]
                if len(content) == wanted:
                    break  # whatever else it sends is not read
        return size

    def _checked(
        self, found: tuple[int, int, int] | None, first: int, stop: int, size: int | None
    ) -> int:
        """Return the file's size by an answer that is what was asked for."""
        total = size if size is not None else found[2] if found else 0
        if found != (first, min(stop, total) - 1, total):
            raise self.address.error(
                "the hub answers with another part of the file than was asked for",
                expected=f"bytes {first}-{min(stop, total) - 1} of {self.name}, {total:,} bytes",
                got="no range" if found is None else "bytes {}-{} of {:,}".format(*found),
                fix="try again; check HF_ENDPOINT and any proxy",
            )
        return total

    def _url(self) -> str:
        import huggingface_hub

        return str(
            huggingface_hub.hf_hub_url(self.address.repository, self.name, revision=self.commit)
        )
