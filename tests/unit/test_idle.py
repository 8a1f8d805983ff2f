from gracl.config import TrainConfig
from gracl.idle import idle


def told(**sections):
    return idle(TrainConfig(data={"root": "x"}, **sections))


def test_nothing_is_said_of_settings_that_are_used_or_were_left():
    assert told() == []
    used = {"search": "approximate", "index": "hnsw", "effort": 50, "clustering": "hdbscan", "min_cluster_size": 3}
    assert told(relations=used) == []
    assert told(loss={"inter_weight": 0.0}) == []


def test_settings_of_the_relations_that_nothing_uses_are_named():
    unused = {
        "effort": 50,
        "eps_rise": 3,
        "min_cluster_size": 3,
        "k2_intra": 1,
        "centroids": 3,
        "rule_temperature": 1.0,
        "relax_tries": 3,
    }
    assert sorted(told(relations=unused, scale={"shard_gpus": 1})) == [
        "relations.centroids is not used with relations.inter_rule=mean",
        "relations.effort is not used with relations.search=exact",
        "relations.eps_rise is not used with relations.eps_first=1",
        "relations.k2_intra is not used with relations.camera_aware=false",
        "relations.min_cluster_size is not used with relations.clustering=dbscan",
        "relations.relax_tries is not used with relations.on_collapse=stop",
        "relations.rule_temperature is not used with relations.inter_rule=mean",
        "scale.shard_gpus is not used with relations.shards=1",
    ]
    other = {"camera_aware": True, "k1": 20, "clustering": "hdbscan", "eps": 0.5}
    assert told(relations=other) == [
        "relations.k1 is not used with relations.camera_aware=true",
        "relations.eps is not used with relations.clustering=hdbscan",
    ]


def test_settings_of_the_loss_that_nothing_uses_are_named():
    loss = {"inter_update": "every", "inter_choice": "nearest_centroid", "intra_start": "centroid"}
    assert told(loss=loss, relations={"intra_rule": "minimum"}) == [
        "relations.intra_rule is not used with loss.intra_start=centroid",
        "loss.inter_choice is not used with loss.inter_update=every",
    ]
    alone = {"intra_weight": 0.0, "intra_temperature": 0.1, "intra_choice": "own_proxy"}
    assert told(loss=alone) == [
        "loss.intra_temperature is not used with loss.intra_weight=0",
        "loss.intra_choice is not used with loss.intra_weight=0",
    ]
    assert told(loss=alone | {"negatives": "both"}) == ["loss.intra_temperature is not used with loss.intra_weight=0"]
    centres = {"inter_start": "centroid", "intra_start": "centroid"}
    assert told(loss=centres, relations={"trim": 0.1, "foreign": "proxies"}) == [
        "relations.foreign is not used with loss.inter_start=centroid",
        "relations.trim is not used with no bank that starts at what was mined",
    ]
    frozen = {"inter_update": "frozen", "intra_update": "frozen", "momentum": 0.5}
    assert told(loss=frozen) == ["loss.momentum is not used with no bank that moves"]
    alone = {"intra_weight": 0.0, "inter_update": "frozen", "inter_start": "centroid", "momentum": 0.5}
    assert told(loss=alone, relations={"trim": 0.1, "inter_rule": "nearest_centroids", "centroids": 3}) == [
        "relations.inter_rule is not used with loss.inter_start=centroid",
        "relations.centroids is not used with loss.inter_start=centroid",
        "relations.trim is not used with no bank that starts at what was mined",
        "loss.momentum is not used with no bank that moves",
    ]
    assert told(loss={"inter_weight": 0.0}, relations={"foreign": "noise_too"}) == [
        "relations.foreign is not used with loss.inter_weight=0"
    ]


def test_settings_of_the_instance_term_that_nothing_uses_are_named():
    assert told(loss={"instance_temperature": 0.2}) == [
        "loss.instance_temperature is not used with loss.instance_weight=0"
    ]
    assert told(loss={"camera_temperature": 0.2}, relations={"centre_k": 50}) == [
        "relations.centre_k is not used with relations.centre=none",
        "loss.camera_temperature is not used with loss.camera_weight=0",
    ]
    shown = {"instances": 4, "consensus": 4}
    frozen = {"inter_update": "frozen", "intra_update": "frozen", "momentum": 0.5}
    soft = {"instance_weight": 1.0, "smoothing": 0.1, "instance_temperature": 0.2}
    assert told(loss=soft | frozen, relations=shown) == []
    third = {"instance_weight": 1.0, "inter_weight": 0.0, "intra_weight": 0.0, "negatives": "both"}
    assert told(loss=third | {"intra_update": "every"}, relations={"instances": 4, "trim": 0.1}) == [
        "relations.trim is not used with no bank that starts at what was mined",
        "loss.negatives is not used with neither of the two terms",
        "loss.intra_update is not used with loss.intra_weight=0",
    ]
    assert told(loss=soft | {"inter_weight": 0.0, "intra_weight": 0.0}, relations=shown) == [
        "relations.consensus is not used with neither of the two terms",
        "loss.smoothing is not used with neither of the two terms",
    ]
