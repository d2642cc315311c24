"""Metadata of a file in a server's response: version, length and checksum."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests

_HEADER = re.compile(r"(?! )[ -~\xa0-\xff]*")
_MD5 = re.compile(r"md5:[0-9a-f]{32}")
_NUMBER = r"\d{1,18}"  # of bytes; Python does not parse numbers of thousands of digits


@dataclass(frozen=True)
class Version:
    """One version of a file on a server.

    Attributes:
        url: as requested, before redirects.
        etag: empty if missing or weak, since weak ones do not guarantee equal bytes.
        modified: the Last-Modified date; empty if missing.
        size: bytes of the whole file; None if unknown.
        checksum: `md5:…`; None if unknown.
    """

    url: str
    etag: str
    modified: str
    size: int | None
    checksum: str | None

    @classmethod
    def of(cls, url: str, response: requests.Response) -> Version:
        """Return the version of a complete response (status 200)."""
        headers = response.headers
        checksum = stated_checksum(response.url, headers)
        return cls(url, _strong_etag(headers), headers.get("Last-Modified", ""), content_length(response), checksum)

    @property
    def can_be(self) -> bool:
        """Whether the fields are valid; otherwise the stored version was damaged."""
        said = all(isinstance(text, str) and _HEADER.fullmatch(text) for text in (self.url, self.etag, self.modified))
        is_sum = self.checksum is None or (isinstance(self.checksum, str) and _MD5.fullmatch(self.checksum) is not None)
        return said and is_sum and (self.size is None or (type(self.size) is int and self.size >= 0))

    @property
    def validator(self) -> str:
        """Value for If-Range."""
        return self.etag or self.modified

    def contradicts(self, headers: Mapping[str, str]) -> bool:
        """Return whether a response is of another version, since some servers honour Range but not If-Range."""
        etag, modified = _strong_etag(headers), headers.get("Last-Modified", "")
        if self.etag and etag:
            return self.etag != etag
        return bool(self.modified and modified and self.modified != modified)


def content_length(response: requests.Response) -> int | None:
    """Return the size of a response's body in bytes; None if it is chunked or not stated."""
    length = response.headers.get("Content-Length", "")
    is_said = re.fullmatch(_NUMBER, length) and "Transfer-Encoding" not in response.headers
    return int(length) if is_said else None


def content_range(headers: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Return the first byte of a response's range, and the size of the whole file; None if not stated."""
    match = re.match(rf"bytes (?:({_NUMBER})-)?[^/]*(?:/({_NUMBER})(?!\d))?", headers.get("Content-Range", ""))
    start, total = match.groups() if match else (None, None)
    return None if start is None else int(start), None if total is None else int(total)


def stated_checksum(url: str, headers: Mapping[str, str]) -> str | None:
    """Return the MD5 of a whole file, as `md5:…`, from headers of Google Cloud Storage or Amazon S3, or Content-MD5.

    Args:
        url: after redirects.
    """
    encoded = headers.get("Content-MD5", "")
    google = re.search(r"(?:^|,)\s*md5=([^,\s]+)", headers.get("x-goog-hash", ""))
    # with another encoding it is the MD5 of the compressed file
    if google and headers.get("x-goog-stored-content-encoding", "identity") == "identity":
        encoded = google[1]
    if encoded:
        try:
            digest = base64.b64decode(encoded, validate=True)
        except ValueError:  # also for non-ASCII text
            return None
        return f"md5:{digest.hex()}" if len(digest) == 16 else None
    amazon = (urlsplit(url).hostname or "").endswith(".amazonaws.com") or headers.get("Server") == "AmazonS3"
    own_key = headers.get("x-amz-server-side-encryption", "AES256") != "AES256"  # then the ETag is not an MD5
    etag = headers.get("ETag", "").strip('"').lower()
    return f"md5:{etag}" if amazon and not own_key and re.fullmatch(r"[0-9a-f]{32}", etag) else None


def _strong_etag(headers: Mapping[str, str]) -> str:
    etag = headers.get("ETag", "")
    return "" if etag.startswith("W/") else etag
