"""One published file over HTTP: resumed where it stood, never spliced from two versions, verified before it counts.

The file grows as `<path>.part`. Beside it, `<path>.part.json` says which version on the server it comes from. Only
when the whole `.part` was verified is it flushed to disk and renamed.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from plbench import __version__
from plbench.data.download.answers import Version, content_length, content_range
from plbench.data.download.remote import RemoteFile, bytes_of_part, compute_checksum, part_path, size_in_words
from plbench.errors import DataError
from plbench.files import unwritable, write_json
from plbench.files.plain_json import parse_json

_TIMEOUT = (10.0, 30.0)  # seconds: to connect, and between two pieces of a body
_TRIES = 6  # in a row without headway
_BACKOFF = 0.5  # seconds, doubled at each try
_MAX_WAIT = 30.0  # seconds; a server's Retry-After may ask for an hour
_HEADWAY = 1 << 16  # bytes; a connection that dies after fewer made none
_CHUNK = 1 << 16
_WINDOW = 60.0  # seconds over which a body has to arrive at `_SLOWEST` bytes a second
_SLOWEST = 1 << 10
_MOST_UNSTATED = 64 << 30  # bytes of a body whose length nobody states, and at most half of what the disk has free
_PASSING = frozenset({408, 425, 429})  # answers below 500 that a later try may not get
_MALFORMED = (
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    requests.exceptions.MissingSchema,
    requests.exceptions.TooManyRedirects,
)


class Stopped(Exception):
    """Another file failed, or the person gave up; the `.part` stays."""


class _TryAgain(Exception):
    """Something that may pass."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Transfer:
    """The fetching of one file; `run` in one thread, the attributes read from others.

    Attributes:
        received: bytes in the `.part` now.
        total: bytes of the whole file; None while nobody says it.
    """

    def __init__(self, file: RemoteFile, root: Path, stop: threading.Event, note: Callable[[str], None]) -> None:
        """`note` is told of what a person may wonder about; once `stop` is set, `run` raises Stopped."""
        self.file, self.root, self.note = file, root, note
        self._path, self._part = root / file.path, part_path(file, root)
        self._version_path = self._part.with_name(f"{self._part.name}.json")
        self._stop = stop
        self._response: requests.Response | None = None
        self.received = bytes_of_part(file, root)
        self.total = self._whole(self._read_version() if self.received else None)

    def run(self) -> str | None:
        """Fetch, verify and rename; return the checksum that was verified, None where nobody states one.

        Raises:
            DataError: if the server refuses, keeps failing, or sends something else. StoreError: if the disk is full
                or not to be written to. Stopped: once told to.
        """
        for is_last in (False, True):
            with _Session() as session:
                self._complete(session)
            checksum = self._expected_checksum()
            problem = self._find_mismatch(self._part, checksum)
            if problem is None:
                break
            self._discard()
            if is_last:
                raise DataError(
                    f"{self.file.url} came twice with {problem}; the copy was deleted: try again later, or fetch it by "
                    f"other means and put it at {self._path}"
                )
            self.note(f"{self.file.name} came with {problem}; fetching it again")
        try:
            with self._part.open("rb+") as file:
                os.fsync(file.fileno())
            self._part.replace(self._path)
        except OSError as error:
            raise unwritable(self._path, error) from error
        return checksum

    def adopt(self) -> bool:
        """Verify what lies at the file's path already; DataError if it is not what the publisher states.

        Returns:
            Whether a person has put it there; else a download was killed just after it was done.
        """
        is_file = self._path.is_file()
        problem = self._find_mismatch(self._path, self.file.checksum) if is_file else "files in it"
        if problem is not None:
            raise DataError(
                f"{self._path} has {problem}, so it is not {self.file.url} as published; delete it, and run the same "
                "command again to fetch it"
            )
        return self._part.exists() or not self._version_path.exists()

    def clear(self) -> None:
        """Delete what only an unfinished download needs."""
        try:
            self._part.unlink(missing_ok=True)
            self._version_path.unlink(missing_ok=True)
            for leftover in self._part.parent.glob(f".{glob.escape(self._version_path.name)}.*.tmp"):
                leftover.unlink()  # of a process that was killed while it wrote the other one
        except OSError as error:
            raise unwritable(self._part, error) from error

    def interrupt(self) -> None:
        """End a wait for data; from another thread, after `stop` was set."""
        response = self._response
        if response is not None:
            with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError):  # it just ended by itself
                response.raw.shutdown()

    def _complete(self, session: requests.Session) -> None:
        """Try until the `.part` holds all that the server has."""
        failures, farthest = 0, bytes_of_part(self.file, self.root)
        while True:
            try:
                if self._try_once(session):
                    return
                raise _TryAgain("the connection ended early")
            except _TryAgain as failure:
                self.pulse()
                if self.received >= farthest + _HEADWAY:
                    failures, farthest = 0, self.received
                failures += 1
                if failures == _TRIES:
                    size = bytes_of_part(self.file, self.root)
                    kept = f": {size_in_words(size)} are kept in {self._part}, so the same command continues from there"
                    raise DataError(
                        f"{self.file.url} could not be fetched, {_TRIES} tries in a row ending with: {failure}; check "
                        f"the network, or try again later{kept if size else ''}"
                    ) from failure
                self._stop.wait(min(max(_BACKOFF * 2**failures, failure.wait), _MAX_WAIT))

    def _try_once(self, session: requests.Session) -> bool:
        """Send one request; return whether the `.part` is now complete."""
        self.pulse()
        version, start = self._read_version(), bytes_of_part(self.file, self.root)
        # a later piece is sure to fit where the server can compare versions, or a checksum will tell
        is_checked = version is not None and (self.file.checksum is not None or bool(version.validator))
        if start and (version is None or version.url != self.file.url or not is_checked):
            self._discard()
            start = 0
        try:
            headers = _request_headers(start, version)
            with session.get(self.file.url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
                self._response = response
                try:
                    self.pulse()  # `interrupt` may have come before there was a response
                    return self._take(response, start, version)
                finally:
                    self._response = None
        except _MALFORMED as error:
            raise DataError(f"{self.file.url} leads nowhere: {error}; {self._by_hand()}") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            cause: BaseException = error  # the innermost, which says more than urllib3's nested one
            while (deeper := cause.__cause__ or cause.__context__) is not None:
                cause = deeper
            raise _TryAgain(str(cause) or type(cause).__name__) from error

    def _take(self, response: requests.Response, start: int, version: Version | None) -> bool:
        """Sort out what the server answered to a request from byte `start` on."""
        status, headers = response.status_code, response.headers
        if status >= 500 or status in _PASSING:
            wait = headers.get("Retry-After", "")
            raise _TryAgain(f"the server answered {status} {response.reason}", float(wait) if wait.isdecimal() else 0.0)
        if status not in (200, 206, 416):
            raise DataError(
                f"{self.file.url} answered {status} {response.reason}, so {self._path} is not there; {self._by_hand()}"
            )
        if start and status != 200 and version is not None and version.contradicts(headers):
            self._restart("it changed on the server")
        if status == 200:
            version, start = self._begin(response), 0
        elif status == 416:
            if start and {content_range(headers)[1], self._whole(version)} <= {None, start}:
                return True
            self._restart("the server has no more of it")
        elif content_range(headers) != (start, self._whole(version)):
            self._restart("the server sent another part than was asked for")
        self.total, self.received = self._whole(version), start
        try:
            most = min(_MOST_UNSTATED, start + shutil.disk_usage(self._part.parent).free // 2)
            window, arrived = time.monotonic(), 0
            with self._part.open("ab") as file:
                # what is there by now: to wait for a whole chunk may take for ever
                while chunk := response.raw.read1(_CHUNK, decode_content=False):
                    self.pulse()
                    if self.total is not None and self.received + len(chunk) > self.total:
                        self._restart(f"the server sent more than {self.total:,} bytes")
                    if self.total is None and self.received + len(chunk) > most:
                        self._refuse_endless(most)
                    file.write(chunk)
                    self.received += len(chunk)
                    arrived += len(chunk)
                    if (seconds := time.monotonic() - window) >= _WINDOW:
                        if arrived < _SLOWEST * seconds:
                            raise _TryAgain(f"only {size_in_words(arrived)} came in {seconds:.0f} s")
                        window, arrived = time.monotonic(), 0
        except OSError as error:  # of the disk: urllib3 turns those of the network into its own
            raise unwritable(self._part, error) from error
        if self.total is None:  # the last chunk says that it is the last; else only a checksum can tell
            return headers.get("Transfer-Encoding") == "chunked" or self._expected_checksum() is not None
        return self.received == self.total

    def _refuse_endless(self, most: int) -> NoReturn:
        self._discard()
        raise DataError(
            f"{self.file.url} does not say how long it is, and sent more than {size_in_words(most)}, half of what the "
            f"disk has free or what plbench takes; {self._by_hand()}"
        )

    def _begin(self, response: requests.Response) -> Version:
        """Make way for a whole body, and note which version it is of, before its first byte is written."""
        encoding = response.headers.get("Content-Encoding", "identity")
        version = Version.of(self.file.url, response)
        wrong = None
        if encoding != "identity" and not self.file.path.endswith((".gz", ".tgz")):  # some servers call these encoded
            wrong = "comes compressed by the server, which was asked not to"
        elif response.headers.get("Content-Type", "").startswith("text/html") and not self.file.path.endswith("html"):
            wrong = "answered with a web page in place of the file"
        elif self.file.size is not None and version.size not in (None, self.file.size):
            wrong = (
                f"has {version.size:,} bytes where its publisher states {self.file.size:,}, so it is something else, "
                "or a new version"
            )
        if wrong is not None:
            raise DataError(f"{self.file.url} {wrong}; {self._by_hand()}")
        self._discard()
        write_json(self._version_path, vars(version))
        return version

    def _find_mismatch(self, path: Path, checksum: str | None) -> str | None:
        """Return what is wrong with a complete file, in words; None if nothing is."""
        size = path.stat().st_size
        if self.file.size not in (None, size):
            return f"{size:,} bytes instead of {self.file.size:,}"
        if checksum is None:
            return None
        found = compute_checksum(path, checksum.split(":")[0], self.pulse)
        return None if found == checksum else f"checksum {found} instead of {checksum}"

    def _expected_checksum(self) -> str | None:
        version = self._read_version()
        return self.file.checksum or (None if version is None else version.checksum)

    def _whole(self, version: Version | None) -> int | None:
        """Return bytes of the whole file, by its publisher or its server."""
        return self.file.size if self.file.size is not None or version is None else version.size

    def _restart(self, reason: str) -> NoReturn:
        self._discard()
        raise _TryAgain(reason)

    def _discard(self) -> None:
        self.clear()
        self.received = 0

    def _read_version(self) -> Version | None:
        try:
            version = Version(**parse_json(self._version_path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        return version if version.can_be else None

    def pulse(self) -> None:
        """Raise Stopped once told to."""
        if self._stop.is_set():
            raise Stopped

    def _by_hand(self) -> str:
        return f"fetch it by other means and put it at {self._path}, or try again later"


class _Session(requests.Session):
    """Follows redirects as requests does, but none from https to an address that anybody on the way could forge."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return where an answer leads; InvalidURL if it is from https to something else."""
        target = super().get_redirect_target(resp)
        if target is not None and urlsplit(resp.url).scheme == "https":
            place = urljoin(resp.url, target)
            if urlsplit(place).scheme != "https":
                raise requests.exceptions.InvalidURL(f"it redirects from https to {place!r:.200}")
        return target


def remote_size(url: str) -> int | None:
    """Return bytes that a server announces for a file; None where it says nothing, or cannot be asked."""
    try:
        with _Session() as session:
            response = session.head(url, headers=_request_headers(0, None), allow_redirects=True, timeout=_TIMEOUT)
    except requests.RequestException:
        return None
    return content_length(response) if response.status_code == 200 else None


def _request_headers(start: int, version: Version | None) -> dict[str, str]:
    # identity: a body that the server compresses has neither the length nor the ranges of the file
    headers = {"User-Agent": f"plbench/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if version is not None and version.validator:
            headers["If-Range"] = version.validator
    return headers
