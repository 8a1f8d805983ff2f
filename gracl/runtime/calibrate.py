"""calibrate(config): the similarity from which on two pictures are taken for one object, for rates of false matches."""

import time
from dataclasses import asdict
from typing import Any

from gracl.errors import ConfigError, expected
from gracl.images import storage
from gracl.images.shards import ShardStore
from gracl.learning.checkpoint import STATE_FILE
from gracl.learning.identity import model_digest
from gracl.retrieval.calibration import Calibration
from gracl.retrieval.calibration import calibrate as thresholds
from gracl.runtime.checkpoints import load_run_state
from gracl.runtime.describe import check, near
from gracl.runtime.relating import clustering_demand, described_once, labels_of, relations_of
from gracl.runtime.session import session
from gracl.runtime.terminal import say
from gracl.uses import CalibrateConfig

CALIBRATION = "calibration.json"


def calibrate(config: CalibrateConfig) -> dict[str, Any]:
    """Describes the train split, clusters it as its training did, and writes `calibration.json` beside the checkpoint.

    Identities are not read: clusters stand for them, see `retrieval/calibration.py`.

    Returns:
        The file, images, clusters and pairs that were counted, the points, seconds.

    Raises:
        ConfigError, ShardError, CheckpointError: before Ray starts.
        ClusteringCollapsed: fewer than two clusters.
        GraclError: too few images.
    """
    started = time.perf_counter()
    encoder, view = check(config, config.data, [config.data.train])
    state = load_run_state(storage.absolute(config.checkpoint))
    store = ShardStore.open(storage.absolute(config.data.root), config.data.train, cache=near(config.data.cache))
    with session(clustering_demand(config)):
        features = described_once(config, config.data, config.data.train, len(store))
        labels = labels_of(config, relations_of(state), features, store, state.epoch).labels
    found = thresholds(features, labels, model=model_digest(encoder, view), flip=config.flip)
    place = place_of(config.checkpoint)
    storage.write_bytes(place, found.to_json())
    for point in found.points:
        say(
            f"false matches {point.rate:g}: from similarity {point.similarity:.3f} on ({point.low:.3f} to "
            f"{point.high:.3f}), where {point.found:.1%} of the pairs of one cluster are"
        )
    facts = {name: getattr(found, name) for name in ("images", "clusters", "pairs")}
    points = [asdict(point) for point in found.points]
    return {"out": place, **facts, "points": points, "seconds": round(time.perf_counter() - started, 2)}


def place_of(checkpoint: str) -> str:
    """Where the calibration of a checkpoint lies."""
    folder = storage.absolute(checkpoint)
    return storage.join(storage.parent(folder) if folder.endswith(STATE_FILE) else folder, CALIBRATION)


def calibration_of(checkpoint: str, model: str, flip: bool) -> Calibration:
    """The calibration of a checkpoint.

    Raises:
        ConfigError: there is none, or it is of another model or of features of another kind.
        GraclError: it is torn.
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
