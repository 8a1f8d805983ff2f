"""Which settings were changed and are not used beside the others, for the user to hear of."""

from gracl.config import TrainConfig


def idle(config: TrainConfig) -> list[str]:
    """One sentence for each such setting."""
    relations, loss, standard = config.relations, config.loss, TrainConfig(data={"root": ""}).flat()
    changed = {name for name, value in config.flat().items() if value != standard[name]}
    camera = f"relations.camera_aware={str(relations.camera_aware).lower()}"
    clustering = f"relations.clustering={relations.clustering}"
    rule = f"relations.inter_rule={relations.inter_rule}"
    search = f"relations.search={relations.search}"
    by_camera = "relations.k1_intra relations.k1_inter relations.k2_intra relations.k2_inter"
    pairs = [
        (relations.search == "exact", search, "relations.index relations.effort"),
        (relations.search != "exact", search, "relations.backend"),
        (relations.clustering == "hdbscan", clustering, "relations.eps"),
        (relations.clustering != "hdbscan", clustering, "relations.min_cluster_size"),
        (relations.camera_aware, camera, "relations.k1 relations.k2"),
        (not relations.camera_aware, camera, by_camera),
        (relations.inter_rule != "nearest_centroids", rule, "relations.centroids"),
        (relations.inter_rule != "log_sum_exp", rule, "relations.rule_temperature"),
        (relations.shards == 1, "relations.shards=1", "scale.shard_cpus scale.shard_gpus"),
    ]
    for bank in ("inter", "intra"):
        start, update, weight = (getattr(loss, f"{bank}_{name}") for name in ("start", "update", "weight"))
        # A bank whose own term has no weight still lends its rows to the other one's negatives.
        unseen = not weight and loss.negatives == "own"
        settings = f"loss.{bank}_start loss.{bank}_choice loss.{bank}_update relations.{bank}_rule"
        pairs += [
            (update != "selected", f"loss.{bank}_update={update}", f"loss.{bank}_choice"),
            (start == "centroid", f"loss.{bank}_start=centroid", f"relations.{bank}_rule"),
            (not weight, f"loss.{bank}_weight=0", f"loss.{bank}_temperature"),
            (unseen, f"loss.{bank}_weight=0", settings),
        ]
    if loss.inter_start == "centroid":
        pairs.append((True, "loss.inter_start=centroid", "relations.foreign"))
    if loss.inter_start == loss.intra_start == "centroid":
        pairs.append((True, "both banks starting at centroids", "relations.trim"))
    frozen = loss.inter_update == loss.intra_update == "frozen"
    pairs.append((frozen, "both updates frozen", "loss.momentum"))
    told = {
        name: f"{name} is not used with {why}"
        for holds, why, names in reversed(pairs)
        if holds
        for name in names.split()
    }
    return [told[name] for name in config.flat() if name in told and name in changed]
