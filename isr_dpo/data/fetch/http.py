"""A file on an HTTP server as a stream that outlives cut connections: it goes on where it was, by Range, or, where the
server knows none, skips what it has read already."""

from __future__ import annotations

import email.utils
import functools
import io
import os
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeVar

import urllib3
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from isr_dpo.errors import DataError, OutsideError, RecipeError, StoreError

ATTEMPTS = 10
"""At the same byte; the waits between them come to three minutes."""
LONGEST_WAIT_SECONDS = 120.0
"""Also where the server asks for more."""
_TIMEOUT = urllib3.Timeout(connect=20, read=60)
_REDIRECTS = 5
_SKIP_BYTES = 1 << 20

T = TypeVar("T")


class Identity(NamedTuple):
    """What tells a file on a server from what stood there before."""

    tag: str
    """ETag, or else the time of the last change; empty where the server says neither."""
    size: int | None


class HttpFile(io.RawIOBase):
    """Reads `url` from its first byte to its last.

    `token` goes to the host of `url` alone, whatever that redirects to. `sign` gives the address that is asked, anew at
    each attempt, where it is another than the one to be shown. `size` is what the file must have, where known.

    Raises, here and while it is read:
        DataError: no such file, or one of another size.
        StoreError: the server wants other credentials, or its certificate is not trusted.
        OutsideError: the server stayed away, or failing, over the attempts; or the file changed while it was read.
    """

    def __init__(
        self,
        url: str,
        *,
        sign: Callable[[str], str] = lambda url: url,
        token: str | None = None,
        size: int | None = None,
        attempts: int = ATTEMPTS,
    ) -> None:
        self.place = without_secrets(url)
        self._url, self._sign, self._token, self._size, self._attempts = url, sign, token, size, attempts
        self._position = 0
        self._answer: urllib3.BaseHTTPResponse | None = None
        self._identity: Identity | None = None
        self._retrying(self._connect)

    @property
    def identity(self) -> Identity:
        assert self._identity is not None  # since the first answer
        return self._identity

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        """Bytes read so far."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        content = self._retrying(lambda: self._read(len(view)))
        view[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        self._drop()
        super().close()

    def _retrying(self, call: Callable[[], T]) -> T:
        retrying = Retrying(
            retry=retry_if_exception_type(_Transient), stop=stop_after_attempt(self._attempts), wait=_wait, reraise=True
        )
        try:
            return retrying(call)
        except _Transient as error:
            raise OutsideError(
                f"{self.place}: {error}, {self._attempts} times at byte {self._position}; run again when the server is "
                "well"
            ) from error

    def _read(self, count: int) -> bytes:
        if self._answer is None:
            self._connect()
        assert self._answer is not None
        try:
            content = self._answer.read(count, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self._lost(error)
        if not content and self._identity and (self._identity.size or 0) > self._position:
            self._lost(EOFError("the connection was cut"))
        return content

    def _lost(self, error: Exception) -> NoReturn:
        self._drop()
        raise _Transient(_said(error)) from error

    def _connect(self) -> None:
        """An answer that stands at the position."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "isr-dpo"}
        if self._position:
            headers["Range"] = f"bytes={self._position}-"
            if self.identity.tag.startswith('"'):  # a weak tag is no condition for a range
                headers["If-Range"] = self.identity.tag
        answer = self._request(headers)
        try:
            self._check_status(answer)
            start, size = _extent(answer)
            self._check_same(Identity(answer.headers.get("ETag", answer.headers.get("Last-Modified", "")), size))
            if start not in (0, self._position):
                raise _Transient(f"it sends byte {start} instead of {self._position}")
            self._skip(answer, self._position - start)
        except BaseException:
            answer.close()
            raise
        self._answer = answer

    def _check_status(self, answer: urllib3.BaseHTTPResponse) -> None:
        status = answer.status
        if status in (200, 206):
            return
        if status in (408, 425, 429) or status >= 500:
            raise _Transient(f"the server answers {status}", after_seconds=_hint(answer))
        if status in (401, 403):
            way = "HF_TOKEN may not read it" if self._token else "set HF_TOKEN for a hub, AWS_* for S3"
            raise StoreError(f"{self.place}: the server refuses ({status}): {way}")
        if status in (404, 410):
            raise DataError(f"{self.place}: there is no such file ({status})")
        if status == 416:
            raise OutsideError(f"{self.place}: changed while it was read; run again")
        raise DataError(f"{self.place}: the server answers {status}; mend the address")

    def _check_same(self, found: Identity) -> None:
        if self._identity is None:
            if None not in (self._size, found.size) and self._size != found.size:
                raise DataError(f"{self.place}: has {found.size} bytes instead of {self._size}")
            self._identity = found._replace(size=found.size or self._size)
        elif found.tag != self._identity.tag or found.size not in (None, self._identity.size):
            raise OutsideError(f"{self.place}: changed while it was read; run again")

    def _skip(self, answer: urllib3.BaseHTTPResponse, count: int) -> None:
        while count:
            try:
                content = answer.read(min(count, _SKIP_BYTES), decode_content=False)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise _Transient(_said(error)) from error
            if not content:
                raise _Transient("the connection was cut")
            count -= len(content)

    def _request(self, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """The answer behind all redirects."""
        url, token = self._sign(self._url), self._token
        for _ in range(_REDIRECTS + 1):
            sent = headers | ({"Authorization": f"Bearer {token}"} if token else {})
            answer = _get(url, sent, self.place)
            if answer.status not in (301, 302, 303, 307, 308) or "Location" not in answer.headers:
                return answer
            answer.close()
            after = urllib.parse.urljoin(url, answer.headers["Location"])
            if _origin(after) != _origin(url):
                token = None  # storage hosts have signed addresses; nobody else may see it
            if url.startswith("https:") and not after.startswith("https:"):
                raise StoreError(f"{self.place}: redirects from https to {without_secrets(after)}; refused")
            url = after
        raise DataError(f"{self.place}: more than {_REDIRECTS} redirects")

    def _drop(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None


def without_secrets(url: str) -> str:
    """The address for messages and records: a query may hold a signature."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class _Transient(Exception):
    """Another attempt may succeed."""

    def __init__(self, what: str, *, after_seconds: float | None = None) -> None:
        super().__init__(what)
        self.after_seconds = after_seconds


_backoff = wait_exponential_jitter(initial=0.5, max=60, jitter=0.5)


def _wait(state: RetryCallState) -> float:
    """The server's own hint, or longer each time."""
    error = state.outcome.exception() if state.outcome else None
    hint = error.after_seconds if isinstance(error, _Transient) else None
    return min(_backoff(state) if hint is None else hint, LONGEST_WAIT_SECONDS)


def _hint(answer: urllib3.BaseHTTPResponse) -> float | None:
    text = answer.headers.get("Retry-After", "")
    try:
        return max(
            0.0, float(text) if text.isdigit() else email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        )
    except ValueError:
        return None


def _extent(answer: urllib3.BaseHTTPResponse) -> tuple[int, int | None]:
    """The first byte that an answer holds, and the size of the whole file."""
    if answer.status == 206:
        try:
            extent = answer.headers["Content-Range"].removeprefix("bytes ")
            size = extent.rpartition("/")[2]
            return int(extent.partition("-")[0]), None if size == "*" else int(size)
        except (KeyError, ValueError) as error:
            raise _Transient("it sends a part and does not say which") from error
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _origin(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2].lower()


def _get(url: str, headers: dict[str, str], place: str) -> urllib3.BaseHTTPResponse:
    try:
        pool = _pool(os.getpid(), _proxy(url))
        return pool.request(
            "GET", url, headers=headers, redirect=False, retries=False, preload_content=False, timeout=_TIMEOUT
        )
    except (urllib3.exceptions.LocationValueError, urllib3.exceptions.URLSchemeUnknown) as error:
        raise RecipeError(f"{place}: no address: {error}") from error
    except urllib3.exceptions.SSLError as error:
        if "CERTIFICATE" in str(error):
            raise StoreError(
                f"{place}: its certificate is not trusted ({error}); SSL_CERT_FILE names another"
            ) from error
        raise _Transient(_said(error)) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _Transient(_said(error)) from error


def _proxy(url: str) -> str | None:
    """Of the environment: HTTPS_PROXY, HTTP_PROXY, NO_PROXY."""
    parts = urllib.parse.urlsplit(url)
    if parts.hostname is None or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return urllib.request.getproxies().get(parts.scheme)


@functools.cache
def _pool(_pid: int, proxy: str | None) -> urllib3.PoolManager:
    return urllib3.ProxyManager(proxy, maxsize=32) if proxy else urllib3.PoolManager(maxsize=32)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
