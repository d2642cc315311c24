"""What a server says of a file that it sends: which version it is, how long, and what it hashes to."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests

_HEADER = re.compile(r"(?! )[ -~\xa0-\xff]*")
_MD5 = re.compile(r"md5:[0-9a-f]{32}")
_NUMBER = r"\d{1,18}"  # of bytes; Python makes no number of thousands of digits


@dataclass(frozen=True)
class Version:
    """One version of a file on a server.

    Attributes:
        url: as it was asked for, before redirects.
        etag: empty where it is not given or weak, which promises no equal bytes.
        modified: the Last-Modified date; empty where not given.
        size: bytes of the whole file; None where not given.
        checksum: `md5:…`; None where not given.
    """

    url: str
    etag: str
    modified: str
    size: int | None
    checksum: str | None

    @classmethod
    def of(cls, url: str, response: requests.Response) -> Version:
        """Return the version that a whole answer, status 200, is of."""
        headers = response.headers
        checksum = stated_checksum(response.url, headers)
        return cls(url, _strong_etag(headers), headers.get("Last-Modified", ""), content_length(response), checksum)

    @property
    def can_be(self) -> bool:
        """Whether a server can have said this; where not, the note of it was damaged."""
        said = all(isinstance(text, str) and _HEADER.fullmatch(text) for text in (self.url, self.etag, self.modified))
        is_sum = self.checksum is None or (isinstance(self.checksum, str) and _MD5.fullmatch(self.checksum) is not None)
        return said and is_sum and (self.size is None or (type(self.size) is int and self.size >= 0))

    @property
    def validator(self) -> str:
        """What If-Range compares."""
        return self.etag or self.modified

    def contradicts(self, headers: Mapping[str, str]) -> bool:
        """Return whether an answer comes from another version; some servers heed Range and not If-Range."""
        etag, modified = _strong_etag(headers), headers.get("Last-Modified", "")
        if self.etag and etag:
            return self.etag != etag
        return bool(self.modified and modified and self.modified != modified)


def content_length(response: requests.Response) -> int | None:
    """Return bytes of an answer's body; None where it is sent in chunks, or the server does not say."""
    length = response.headers.get("Content-Length", "")
    is_said = re.fullmatch(_NUMBER, length) and "Transfer-Encoding" not in response.headers
    return int(length) if is_said else None


def content_range(headers: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Return the first byte of the range that an answer holds, and bytes of the whole file; None where not said."""
    match = re.match(rf"bytes (?:({_NUMBER})-)?[^/]*(?:/({_NUMBER})(?!\d))?", headers.get("Content-Range", ""))
    start, total = match.groups() if match else (None, None)
    return None if start is None else int(start), None if total is None else int(total)


def stated_checksum(url: str, headers: Mapping[str, str]) -> str | None:
    """Return the MD5, as `md5:…`, that a server gives with a whole file: Google's storage, Amazon's, and Content-MD5.

    Args:
        url: after redirects.
    """
    encoded = headers.get("Content-MD5", "")
    google = re.search(r"(?:^|,)\s*md5=([^,\s]+)", headers.get("x-goog-hash", ""))
    if google and headers.get("x-goog-stored-content-encoding", "identity") == "identity":  # else of the packed file
        encoded = google[1]
    if encoded:
        try:
            digest = base64.b64decode(encoded, validate=True)
        except ValueError:  # also of what is no ASCII
            return None
        return f"md5:{digest.hex()}" if len(digest) == 16 else None
    amazon = (urlsplit(url).hostname or "").endswith(".amazonaws.com") or headers.get("Server") == "AmazonS3"
    own_key = headers.get("x-amz-server-side-encryption", "AES256") != "AES256"  # then the ETag is no MD5
    etag = headers.get("ETag", "").strip('"').lower()
    return f"md5:{etag}" if amazon and not own_key and re.fullmatch(r"[0-9a-f]{32}", etag) else None


def _strong_etag(headers: Mapping[str, str]) -> str:
    etag = headers.get("ETag", "")
    return "" if etag.startswith("W/") else etag
