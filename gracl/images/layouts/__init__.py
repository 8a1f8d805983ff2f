"""Raw folders and lists of images -> `Listing`. One file per way of laying out a dataset."""

from collections.abc import Callable

from gracl.errors import LayoutError, expected
from gracl.images import storage
from gracl.images.layouts.files import is_utf8, spelt
from gracl.images.layouts.folders import folder, unlabelled
from gracl.images.layouts.listing import SPLITS, Found, Listing, RawImage, Split, settle
from gracl.images.layouts.msmt17 import msmt17
from gracl.images.layouts.named import market1501, veri776
from gracl.images.layouts.table import find_table, table

__all__ = ["LAYOUTS", "SPLITS", "Listing", "RawImage", "Split", "list_images"]

LAYOUTS: dict[str, Callable[[str], Found]] = {
    "market1501": market1501,
    "msmt17": msmt17,
    "veri776": veri776,
    "folder": folder,
    "unlabelled": unlabelled,
    "manifest": table,
}


def list_images(root: str, layout: str, *, allow_shared_identities: bool = False) -> Listing:
    """Finds every image of a raw dataset and settles its split, identity, camera and index.

    The same content gives the same listing on every machine. Cameras are numbered from 0 over all splits; identities
    that are whole numbers stay as found.

    Args:
        root: URI of the folder; for the layout `manifest` also of the CSV or Parquet file itself.
        layout: market1501 (also DukeMTMC-reID and PersonX), msmt17, veri776, folder, unlabelled or manifest.
        allow_shared_identities: accept that an identity of train is also in query or gallery.

    Raises:
        LayoutError: the root does not look like the layout; the text says how.
        ConfigError: the URI's scheme is unknown or its package is missing.
    """
    if layout not in LAYOUTS:
        raise LayoutError(expected(f"one of {', '.join(LAYOUTS)}", repr(layout), "choose layout="))
    root = storage.absolute(root)
    if not is_utf8(root):
        raise LayoutError(expected("a folder whose name is UTF-8", spelt(root), "rename it"))
    base = find_table(root)[0] if layout == "manifest" else root
    if not storage.is_folder(base):
        raise LayoutError(expected(f"a folder at {base}", "none", "check raw="))
    return settle(base, layout, LAYOUTS[layout](root), allow_shared_identities=allow_shared_identities)
