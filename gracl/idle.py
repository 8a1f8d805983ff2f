"""Which settings were changed and are not used beside the others, for the user to hear of."""

from gracl.config import TrainConfig


def idle(config: TrainConfig) -> list[str]:
    """One sentence for each such setting."""
    relations, loss, standard = config.relations, config.loss, TrainConfig(data={"root": ""}).flat()
    changed = {name for name, value in config.flat().items() if value != standard[name]}
    camera = f"relations.camera_aware={str(relations.camera_aware).lower()}"
    clustering = f"relations.clustering={relations.clustering}"
    collapse = f"relations.on_collapse={relations.on_collapse}"
    rule = f"relations.inter_rule={relations.inter_rule}"
    search = f"relations.search={relations.search}"
    by_camera = "relations.k1_intra relations.k1_inter relations.k2_intra relations.k2_inter"
    pairs = [
        (relations.search == "exact", search, "relations.index relations.effort"),
        (relations.search != "exact", search, "relations.backend"),
        (relations.clustering == "hdbscan", clustering, "relations.eps relations.eps_rise"),
        (relations.on_collapse != "relax_eps", collapse, "relations.relax_factor relations.relax_tries"),
        (relations.eps_first == 1, "relations.eps_first=1", "relations.eps_rise"),
        (relations.clustering != "hdbscan", clustering, "relations.min_cluster_size"),
        (relations.camera_aware, camera, "relations.k1 relations.k2"),
        (not relations.camera_aware, camera, by_camera),
        (config.start is not None, "start, whose weights are gone on with", "encoder.weights"),
        (relations.inter_rule != "nearest_centroids", rule, "relations.centroids"),
        (relations.inter_rule != "log_sum_exp", rule, "relations.rule_temperature"),
        (config.cameras_from == "recorded", "cameras_from=recorded", "surroundings.groups surroundings.edge"),
        (relations.shards == 1, "relations.shards=1", "scale.shard_cpus scale.shard_gpus"),
    ]
    seen, mined, moved = {}, {}, {}
    for bank in ("inter", "intra"):
        start, update, weight = (getattr(loss, f"{bank}_{name}") for name in ("start", "update", "weight"))
        # A bank whose own term has no weight still lends its rows to the other one's negatives.
        seen[bank] = bool(weight) or (loss.negatives == "both" and loss.inter_weight + loss.intra_weight > 0)
        mined[bank], moved[bank] = seen[bank] and start == "mined", seen[bank] and update != "frozen"
        unweighted, rules = f"loss.{bank}_weight=0", f"relations.{bank}_rule"
        if bank == "inter":
            rules += " relations.foreign relations.centroids relations.rule_temperature"
        pairs += [
            (update != "selected", f"loss.{bank}_update={update}", f"loss.{bank}_choice"),
            (start == "centroid", f"loss.{bank}_start=centroid", rules),
            (not weight, unweighted, f"loss.{bank}_temperature"),
            (not seen[bank], unweighted, f"loss.{bank}_start loss.{bank}_choice loss.{bank}_update {rules}"),
        ]
    joined = loss.instance_weight or loss.camera_weight
    pairs += [
        (not loss.instance_weight, "loss.instance_weight=0", "loss.instance_temperature"),
        (not loss.camera_weight, "loss.camera_weight=0", "loss.camera_temperature"),
        (relations.centre != "local", f"relations.centre={relations.centre}", "relations.centre_k"),
        (
            not (loss.inter_weight or loss.intra_weight),
            "neither of the two terms",
            "loss.negatives loss.smoothing relations.consensus",
        ),
    ]
    pairs.append((not any(mined.values()), "no bank that starts at what was mined", "relations.trim relations.space"))
    pairs.append((not any(moved.values()) and not joined, "no bank that moves", "loss.momentum"))
    told = {
        name: f"{name} is not used with {why}"
        for holds, why, names in reversed(pairs)
        if holds
        for name in names.split()
    }
    return [told[name] for name in config.flat() if name in told and name in changed]
