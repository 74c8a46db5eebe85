"""Requests for parts of files: where they may lead, and where the token may go."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urljoin, urlsplit

from rankscope.io.hub.address import Address

__all__ = ["Answer", "check_safe", "following"]

_REDIRECTS = 5
_MOVED = (301, 302, 303, 307, 308)
_CHUNK = 2**18
_PORTS = {"http": 80, "https": 443}
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)


@dataclass(frozen=True)
class Answer:
    """The head of an answer, and its body as it comes."""

    status: int
    headers: Mapping[str, str]
    chunks: Callable[[], Iterator[bytes]]

    @property
    def content_range(self) -> tuple[int, int, int] | None:
        """The first and the last byte sent and the size of the file, from 0."""
        match = _CONTENT_RANGE.fullmatch(self.headers.get("Content-Range", ""))
        packed = self.headers.get("Content-Encoding", "identity") != "identity"
        if match is None or packed:
            return None
        first, last, size = map(int, match.groups())
        return first, last, size


@contextmanager
def following(address: Address, url: str, part: str) -> Iterator[Answer]:
    """Yield the answer to a request for `part` of `url`, and of where that leads.

    The token goes to the hub alone, not to the hosts that it sends one on to.

    Raises
    ------
    SourceError
        If it leads in a circle, or to a place without encryption.
    """
    from huggingface_hub import constants

    hub = constants.ENDPOINT
    asked = {"Range": part, "Accept-Encoding": "identity"}
    for _ in range(_REDIRECTS):
        check_safe(address, url)
        token = None if _place(url) == _place(hub) else False
        headers = _library().build_hf_headers(token=token, library_name="rankscope")
        with _request(url, headers | asked) as answer:
            if answer.status not in _MOVED:
                yield answer
                return
            url = urljoin(url, answer.headers.get("Location", ""))
    raise address.error(
        "the hub sends one on and on",
        expected=f"the file after at most {_REDIRECTS} redirects",
        got=_shown(url),
        fix="check HF_ENDPOINT and any proxy",
    )


def check_safe(address: Address, url: str) -> None:
    """Refuse a place that anyone on the way could alter; only this computer needs no encryption.

    Raises
    ------
    SourceError
        If it is neither https nor, where the hub itself is on this computer, loopback.
    """
    from huggingface_hub import constants

    here = _is_loopback(url) and _is_loopback(constants.ENDPOINT)
    if urlsplit(url).scheme != "https" and not here:
        raise address.error(
            "the hub leads to a place without encryption",
            expected="https",
            got=_shown(url),
            fix="set HF_ENDPOINT to an https address",
        )


@contextmanager
def _request(url: str, headers: dict[str, str]) -> Iterator[Answer]:
    """Yield the answer to one request, by the client that huggingface_hub is set up with."""
    from huggingface_hub import constants

    session = _library().get_session()
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if callable(getattr(session, "stream", None)):
        with session.stream(
            "GET", url, headers=headers, follow_redirects=False, timeout=timeout
        ) as answer:
            yield Answer(answer.status_code, answer.headers, lambda: answer.iter_raw(_CHUNK))
    else:  # requests, before huggingface_hub 1.0
        with session.get(
            url, headers=headers, allow_redirects=False, timeout=timeout, stream=True
        ) as answer:
            yield Answer(
                answer.status_code,
                answer.headers,
                lambda: answer.raw.stream(_CHUNK, decode_content=False),
            )


def _library() -> Any:
    import huggingface_hub.utils

    return huggingface_hub.utils


def _place(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shown(url: str) -> str:
    # Without user and query: a signed address opens the file for whoever reads it.
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{parts.path}"
