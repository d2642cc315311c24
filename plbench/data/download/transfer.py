"""Download one file over HTTP: resumable, never mixed from two versions, and verified before use.

The file grows as `<path>.part`, next to `<path>.part.json` with its version on the server. Once verified, it is flushed
to disk and renamed.
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

_TIMEOUT = (10.0, 30.0)  # seconds: to connect, and between two chunks of a body
_TRIES = 6  # in a row without progress
_BACKOFF = 0.5  # seconds, doubled with each try
_MAX_WAIT = 30.0  # seconds; a server's Retry-After may be an hour
_HEADWAY = 1 << 16  # bytes; fewer before a connection is lost do not count as progress
_CHUNK = 1 << 16
_WINDOW = 60.0  # seconds over which the average rate must reach `_SLOWEST` bytes per second
_SLOWEST = 1 << 10
_MOST_UNSTATED = 64 << 30  # maximum bytes of a body of unknown length; also limited to half of the free disk space
_PASSING = frozenset({408, 425, 429})  # temporary errors below 500
_MALFORMED = (
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    requests.exceptions.MissingSchema,
    requests.exceptions.TooManyRedirects,
)


class Stopped(Exception):
    """Another file failed, or the user cancelled; the `.part` is kept."""


class _TryAgain(Exception):
    """A temporary failure."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Transfer:
    """The download of one file: `run` in one thread, attributes may be read from others.

    Attributes:
        received: bytes in the `.part` now.
        total: bytes of the whole file; None while unknown.
    """

    def __init__(self, file: RemoteFile, root: Path, stop: threading.Event, note: Callable[[str], None]) -> None:
        """Set up a download; `note` receives messages for the user, and `run` raises Stopped once `stop` is set."""
        self.file, self.root, self.note = file, root, note
        self._path, self._part = root / file.path, part_path(file, root)
        self._version_path = self._part.with_name(f"{self._part.name}.json")
        self._stop = stop
        self._response: requests.Response | None = None
        self.received = bytes_of_part(file, root)
        self.total = self._whole(self._read_version() if self.received else None)

    def run(self) -> str | None:
        """Download, verify and rename; return the verified checksum, None if none is stated.

        Raises:
            DataError: if the server refuses, keeps failing, or sends something else. StoreError: if the disk is full or
                not writable. Stopped: once `stop` is set.
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
        """Verify an existing file at the path; DataError if it differs from what the publisher states.

        Returns:
            Whether the user put it there; otherwise a download was killed just after it had finished.
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
        """Delete the files of an unfinished download."""
        try:
            self._part.unlink(missing_ok=True)
            self._version_path.unlink(missing_ok=True)
            for leftover in self._part.parent.glob(f".{glob.escape(self._version_path.name)}.*.tmp"):
                leftover.unlink()  # of a process that was killed while writing the version
        except OSError as error:
            raise unwritable(self._part, error) from error

    def interrupt(self) -> None:
        """Abort a wait for data; called from another thread after `stop` was set."""
        response = self._response
        if response is not None:
            with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError):  # it has just ended by itself
                response.raw.shutdown()

    def _complete(self, session: requests.Session) -> None:
        """Try until the `.part` is complete."""
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
        # resuming is safe if the server can compare versions, or if there is a checksum to verify
        is_checked = version is not None and (self.file.checksum is not None or bool(version.validator))
        if start and (version is None or version.url != self.file.url or not is_checked):
            self._discard()
            start = 0
        try:
            headers = _request_headers(start, version)
            with session.get(self.file.url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
                self._response = response
                try:
                    self.pulse()  # `interrupt` may have been called before there was a response
                    return self._take(response, start, version)
                finally:
                    self._response = None
        except _MALFORMED as error:
            raise DataError(f"{self.file.url} leads nowhere: {error}; {self._by_hand()}") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            cause: BaseException = error  # the innermost error is more informative than urllib3's nested one
            while (deeper := cause.__cause__ or cause.__context__) is not None:
                cause = deeper
            raise _TryAgain(str(cause) or type(cause).__name__) from error

    def _take(self, response: requests.Response, start: int, version: Version | None) -> bool:
        """Handle the response to a request from byte `start` on."""
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
                # whatever is available now: waiting for a full chunk may take forever
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
        except OSError as error:  # a disk error: urllib3 wraps those of the network
            raise unwritable(self._part, error) from error
        if self.total is None:  # the last chunk of a chunked body is marked; otherwise only a checksum can tell
            return headers.get("Transfer-Encoding") == "chunked" or self._expected_checksum() is not None
        return self.received == self.total

    def _refuse_endless(self, most: int) -> NoReturn:
        self._discard()
        raise DataError(
            f"{self.file.url} does not say how long it is, and sent more than {size_in_words(most)}, half of what the "
            f"disk has free or what plbench takes; {self._by_hand()}"
        )

    def _begin(self, response: requests.Response) -> Version:
        """Check a complete response, discard earlier data, and store the version before the first byte is written."""
        encoding = response.headers.get("Content-Encoding", "identity")
        version = Version.of(self.file.url, response)
        wrong = None
        # some servers declare .gz files as encoded
        if encoding != "identity" and not self.file.path.endswith((".gz", ".tgz")):
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
        """Return how a complete file differs from the expected one; None if it does not."""
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
        """Return the size of the whole file in bytes, as stated by its publisher or its server."""
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
        """Raise Stopped if `stop` is set."""
        if self._stop.is_set():
            raise Stopped

    def _by_hand(self) -> str:
        return f"fetch it by other means and put it at {self._path}, or try again later"


class _Session(requests.Session):
    """A session that follows redirects, but not from https to http, which could be forged."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return the target of a redirect; InvalidURL if it leads from https to something else."""
        target = super().get_redirect_target(resp)
        if target is not None and urlsplit(resp.url).scheme == "https":
            place = urljoin(resp.url, target)
            if urlsplit(place).scheme != "https":
                raise requests.exceptions.InvalidURL(f"it redirects from https to {place!r:.200}")
        return target


def remote_size(url: str) -> int | None:
    """Return the size in bytes that a server states for a file; None if unknown or not reachable."""
    try:
        with _Session() as session:
            response = session.head(url, headers=_request_headers(0, None), allow_redirects=True, timeout=_TIMEOUT)
    except requests.RequestException:
        return None
    return content_length(response) if response.status_code == 200 else None


def _request_headers(start: int, version: Version | None) -> dict[str, str]:
    # identity: a body compressed by the server has neither the file's length nor its ranges
    headers = {"User-Agent": f"plbench/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if version is not None and version.validator:
            headers["If-Range"] = version.validator
    return headers
