"""The calibration that lies beside a checkpoint. No Ray here: a search asks for it."""

from gracl.errors import ConfigError, expected
from gracl.images import storage
from gracl.learning.checkpoint import STATE_FILE
from gracl.retrieval.calibration import Calibration

CALIBRATION = "calibration.json"


def place_of(checkpoint: str) -> str:
    """Where the calibration of a checkpoint lies."""
    folder = storage.absolute(checkpoint)
    return storage.join(storage.parent(folder) if folder.endswith(STATE_FILE) else folder, CALIBRATION)


def calibration_of(checkpoint: str, model: str, flip: bool) -> Calibration:
    """The calibration of a checkpoint.

    Raises:
        ConfigError: there is none, or it is of another model or of features of another kind.
        StoredIndexError: it is torn.
    """
    place = place_of(checkpoint)
    if not storage.exists(place):
        do = f"python pipelines/calibrate.py checkpoint={checkpoint} data.root=..."
        raise ConfigError(expected(f"a calibration at {place}", "none", f"make it: {do}"))
    found = Calibration.from_json(storage.read_bytes(place), place)
    if (found.model, found.flip) != (model, flip):
        came = f"of {found.model[:12]}, flip={str(found.flip).lower()}"
        what = f"a calibration of the model {model[:12]}, flip={str(flip).lower()}"
        raise ConfigError(expected(what, came, "calibrate again"))
    return found
