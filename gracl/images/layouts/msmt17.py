"""MSMT17 (Wei et al., CVPR 2018): lists of paths beside two folders; V1, or V2 in which faces are blurred.

A line of a list is `0000/0000_000_01_0303morning_0015_0.jpg 0`: path under the folder, then identity; the third part
of the name is the camera. The field trains on `list_train` and `list_val` together (32,621 images, method.md 6).
"""

import re

from gracl.errors import LayoutError, expected
from gracl.images import storage
from gracl.images.layouts.files import RawFile, inside, is_image, list_files, shown
from gracl.images.layouts.listing import WHOLE_NUMBER, Entry, Found, Split, refuse_empty

FOLDERS_OF = {"MSMT17_V1": ("train", "test"), "MSMT17_V2": ("mask_train_v2", "mask_test_v2")}
LISTS: dict[str, Split] = {
    "list_train.txt": "train",
    "list_val.txt": "train",
    "list_query.txt": "query",
    "list_gallery.txt": "gallery",
}
MAX_BYTES = 256 * 2**20  # of a list, a hundred times the largest
NAMING = re.compile(r"\d+_\d+_(\d+)_")


def msmt17(root: str) -> Found:
    """Reads MSMT17 by its four lists; which version it is, is seen from the folders and recorded.

    Train and test number their identities separately, both from 0, so equal numbers are not shared identities.
    Images that lie in the folders but in no list are left out and counted as `unlisted`.

    Raises:
        LayoutError: neither version's folders are there, or both; a list is missing, names an image that is not
            there or a name without camera, or is empty.
    """
    version, (train, test) = _version(root)
    files = {file.path: file for folder in (train, test) for file in list_files(root, folder)}
    entries = [
        entry
        for name, split in LISTS.items()
        for entry in _read_list(root, name, split, train if split == "train" else test, files)
    ]
    refuse_empty(root, entries, {split: name for name, split in reversed(LISTS.items())})
    listed = {entry.file.path for entry in entries}
    unlisted = sum(is_image(path) for path in files.keys() - listed)
    return Found(entries, version, {"unlisted": unlisted}, shared_names=True)


def _version(root: str) -> tuple[str, tuple[str, str]]:
    there = set(storage.names_in(root))
    met = [(version, folders) for version, folders in FOLDERS_OF.items() if set(folders) <= there]
    if len(met) != 1:
        raise LayoutError(
            expected(
                f"train and test (V1) or mask_train_v2 and mask_test_v2 (V2) in {root}",
                "both" if met else (shown(sorted(there)) or "nothing"),
                "let raw= be the folder of one version",
            )
        )
    return met[0]


def _read_list(root: str, name: str, split: Split, folder: str, files: dict[str, RawFile]) -> list[Entry]:
    uri = storage.join(root, name)
    if not storage.exists(uri):
        raise LayoutError(expected(f"the list {uri}", "no such file", "the lists belong to the dataset: put it there"))
    try:
        text = storage.read_plain(uri, at_most=MAX_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise LayoutError(expected(f"a readable list {uri}", str(error)[:500], "repair the file")) from error
    lines = [line for line in text.splitlines() if line.strip()]
    parsed = [_parse(line, name) for line in lines]
    missing = [path for path, _, _ in parsed if f"{folder}/{path}" not in files]
    if missing:
        raise LayoutError(
            expected(
                f"every image of {name} in {root}/{folder}",
                f"{len(missing)} missing: {shown(missing)}",
                "unpack the dataset again",
            )
        )
    return [Entry(files[f"{folder}/{path}"], split, identity, camera) for path, identity, camera in parsed]


def _parse(line: str, name: str) -> tuple[str, int, int]:
    """Path, identity and camera of one line."""
    path, _, label = line.strip().rpartition(" ")
    camera = NAMING.match(path.rsplit("/", 1)[-1])
    if not WHOLE_NUMBER.fullmatch(label) or camera is None:
        like = f"lines like «0000/0000_000_01_0303morning_0015_0.jpg 0» in {name}"
        raise LayoutError(expected(like, repr(line[:200]), "check the list"))
    return inside(path), int(label), int(camera[1])
