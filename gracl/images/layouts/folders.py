"""Plain folders: `<identity>/<camera>/*`, by split or all for training, and pictures of which nothing is known."""

from gracl.errors import LayoutError, expected
from gracl.images import storage
from gracl.images.layouts.files import RawFile, is_image, list_files, shown
from gracl.images.layouts.listing import SPLITS, Entry, Found, Split, refuse_empty
from gracl.types import UNKNOWN


def folder(root: str) -> Found:
    """Reads `<identity>/<camera>/*`, all for training; or the same under `train/`, `query/` and `gallery/`.

    Where one of those three folders stands directly under the root, the root is read by split, and nothing else may
    stand beside them. Identities and cameras that are whole numbers stay in that order, other names are sorted.

    Raises:
        LayoutError: an image lies at another depth, or a split's folder is empty.
    """
    files = list_files(root)
    pictures = [file for file in files if is_image(file.path)]
    notes = {"not_images": len(files) - len(pictures)}
    names = storage.names_in(root)
    present: dict[Split, str] = {split: split for split in SPLITS if split in names}
    if not present:
        return Found([_entry(file, "train", file.path) for file in pictures], "folder", notes)
    entries = []
    for file in pictures:
        top, _, rest = file.path.partition("/")
        if top not in present.values():
            raise _strange(file.path, "<split>/<identity>/<camera>/<image>")
        entries.append(_entry(file, next(split for split in SPLITS if split == top), rest))
    refuse_empty(root, entries, present)
    return Found(entries, "folder by split", notes)


def unlabelled(root: str) -> Found:
    """Reads every picture under the root, at any depth, for training; identity and camera are unknown (-1).

    Raises:
        LayoutError: there is no such folder, or a link leaves it.
    """
    files = list_files(root)
    pictures = [file for file in files if is_image(file.path)]
    entries = [Entry(file, "train", UNKNOWN, UNKNOWN) for file in pictures]
    return Found(entries, "unlabelled", {"not_images": len(files) - len(pictures)})


def _entry(file: RawFile, split: Split, path: str) -> Entry:
    parts = path.split("/")
    if len(parts) != 3:
        raise _strange(file.path, "<identity>/<camera>/<image>")
    return Entry(file, split, parts[0], parts[1])


def _strange(path: str, wanted: str) -> LayoutError:
    advice = "move it, or use layout=unlabelled or layout=manifest"
    return LayoutError(expected(f"images as {wanted}", shown([path]), advice))
