"""Files of torch from anywhere: tensors and plain values are read out of them, no code in them is run."""

import zipfile
from pathlib import Path
from typing import Any

import torch


def load_plain(path: str | Path, *, whole: bool = False) -> Any:
    """What `torch.save` wrote, onto the CPU, as far as it is tensors and plain values.

    Args:
        path: a file of torch, of the old or the new form.
        whole: it must be of the new form, and its checksums right: torch reads a flipped bit without a word.

    Raises:
        Exception: any; bytes that are no such file can fail in the readers in any way. Among them: an object that is
            not plain (`weights_only`), and a file that would be larger unpacked, which torch never writes.
    """
    if whole or zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _refuse_packed(archive, Path(path).stat().st_size)
            torn = archive.testzip() if whole else None
        if torn is not None:
            raise zipfile.BadZipFile(f"wrong checksum in {torn}")
    return torch.load(path, map_location="cpu", weights_only=True)


def _refuse_packed(archive: zipfile.ZipFile, size: int) -> None:
    files = archive.infolist()
    if any(file.compress_type != zipfile.ZIP_STORED for file in files) or sum(file.file_size for file in files) > size:
        raise zipfile.BadZipFile("compressed: unpacked it could be of any size")
