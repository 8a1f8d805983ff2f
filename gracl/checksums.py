"""Checksums of files, and whether they are compared where files are opened."""

import hashlib
import os
from pathlib import Path

from gracl.errors import ConfigError, expected


def sha256_of(path: Path) -> str:
    """The SHA-256 of a local file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_verified() -> bool:
    """Whether shards and indexes are compared with their checksums when they are mapped: `GRACL_VERIFY`, 1 or 0.

    Raises:
        ConfigError: it is something else.
    """
    asked = os.environ.get("GRACL_VERIFY", "1")
    if asked not in ("0", "1"):
        raise ConfigError(expected("GRACL_VERIFY of 0 or 1", repr(asked), "set one of these, or leave it out"))
    return asked == "1"
