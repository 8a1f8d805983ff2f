"""calibrate(config): the similarity from which on two pictures are taken for one object, for rates of false matches."""

import time
from dataclasses import asdict
from typing import Any, Literal

from gracl.images import storage
from gracl.images.shards import ShardStore
from gracl.learning.identity import model_digest
from gracl.retrieval.calibration import calibrate as thresholds
from gracl.runtime.calibrated import place_of
from gracl.runtime.checkpoints import load_run_state, relations_of
from gracl.runtime.describe import check, near
from gracl.runtime.progress import say
from gracl.runtime.relating import clustering_demand, described_once, labels_of
from gracl.runtime.session import session
from gracl.runtime.surroundings import check_surroundings
from gracl.runtime.truth import objects_of
from gracl.uses import CalibrateConfig


def calibrate(config: CalibrateConfig) -> dict[str, Any]:
    """Describes a split, clusters it as the training did, and writes `calibration.json` beside the checkpoint.

    Clusters stand for identities, see `retrieval/calibration.py`; with `config.identities` these are read instead.

    Returns:
        The file, images, clusters and pairs that were counted, the points, seconds.

    Raises:
        ConfigError, ShardError, CheckpointError: before Ray starts.
        ClusteringCollapsed: fewer than two clusters.
        GraclError: too few images.
    """
    started = time.perf_counter()
    split = config.data.split
    encoder, view = check(config, config.data, [split])
    state = load_run_state(storage.absolute(config.checkpoint))
    root, cache = storage.absolute(config.data.root), near(config.data.cache)
    store = ShardStore.open(root, split, cache=cache)
    if not config.identities:  # refused before Ray starts
        relations_of(state)
        check_surroundings(state, len(store))
    with session(clustering_demand(config)):
        features = described_once(config, config.data, split, len(store))
        if config.identities:
            labels = objects_of(root, split, cache)
        else:
            labels = labels_of(config, state, features, config.data, split).labels
    by: Literal["identities", "clusters"] = "identities" if config.identities else "clusters"
    found = thresholds(features, labels, model=model_digest(encoder, view), flip=config.flip, by=by)
    place = place_of(config.checkpoint)
    storage.write_bytes(place, found.to_json())
    for point in found.points:
        say(
            f"false matches {point.rate:g}: from similarity {point.similarity:.3f} on ({point.low:.3f} to "
            f"{point.high:.3f}), where {point.found:.1%} of the pairs of one object are, by {by}"
        )
    facts = {name: getattr(found, name) for name in ("images", "clusters", "pairs")}
    points = [asdict(point) for point in found.points]
    return {"out": place, **facts, "points": points, "seconds": round(time.perf_counter() - started, 2)}
