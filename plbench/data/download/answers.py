"""What a server says of a file that it sends: which version it is, how long, and what it hashes to."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests


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
    return int(length) if length.isdecimal() and "Transfer-Encoding" not in response.headers else None


def stated_total(headers: Mapping[str, str]) -> int | None:
    """Return bytes of the whole file, of which the answer is a range."""
    match = re.fullmatch(r"bytes [^/]*/(\d+)", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def range_start(headers: Mapping[str, str]) -> int | None:
    """Return the first byte of the range that an answer holds."""
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def retry_after(headers: Mapping[str, str]) -> float:
    """Return seconds that a busy server asks one to wait; 0 where it does not."""
    text = headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0


def stated_checksum(url: str, headers: Mapping[str, str]) -> str | None:
    """Return the MD5, as `md5:…`, that a server gives with a whole file: Google's storage, Amazon's, and Content-MD5.

    Args:
        url: after redirects.
    """
    stored = headers.get("x-goog-stored-content-encoding", "identity")  # of gzip, the hash is of the compressed file
    for entry in headers.get("x-goog-hash", "").split(","):
        if entry.strip().startswith("md5=") and stored == "identity":
            return _md5_of_base64(entry.strip().removeprefix("md5="))
    if "Content-MD5" in headers:
        return _md5_of_base64(headers["Content-MD5"])
    amazon = (urlsplit(url).hostname or "").endswith(".amazonaws.com") or headers.get("Server") == "AmazonS3"
    own_key = headers.get("x-amz-server-side-encryption", "AES256") != "AES256"  # then the ETag is no MD5
    etag = headers.get("ETag", "").strip('"').lower()
    return f"md5:{etag}" if amazon and not own_key and re.fullmatch(r"[0-9a-f]{32}", etag) else None


def _md5_of_base64(text: str) -> str | None:
    try:
        digest = base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
    return f"md5:{digest.hex()}" if len(digest) == 16 else None


def _strong_etag(headers: Mapping[str, str]) -> str:
    etag = headers.get("ETag", "")
    return "" if etag.startswith("W/") else etag
