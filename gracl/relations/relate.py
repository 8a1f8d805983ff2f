"""Features into labels and proxies: the steps of the relations in order, checked before and measured.

nearest neighbours -> weighted reciprocal sets -> Jaccard distance -> clusters -> proxies -> figures.
"""

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray
from scipy.sparse import csr_array

from gracl.kernels import thread_count
from gracl.measuring import phase
from gracl.relations.camera_proxies import mine_camera_proxies
from gracl.relations.cameras import check_list_lengths
from gracl.relations.checks import (
    check_cameras,
    check_clusters,
    check_extras,
    check_features,
    check_memory,
    check_settings,
)
from gracl.relations.choices import Foreign, InterRule, IntraRule, Space, check_rules
from gracl.relations.clustering import Clustering, cluster
from gracl.relations.collapse import Fallback, OnCollapse, settle
from gracl.relations.consensus import neighbour_consensus
from gracl.relations.diagnostics import describe, silhouette
from gracl.relations.instances import pick_instances
from gracl.relations.jaccard import shared_distance
from gracl.relations.lists import invert
from gracl.relations.proxies import mine_proxies
from gracl.relations.radius import Eps, choose_eps, largest_eps, share_of_eps
from gracl.relations.refining import EPS_GAP, Noise, check_refining, own_clusters
from gracl.relations.steps import WHOLE, Centre, Find, Progress, centred, find_here, labels_at, sets_of, telling
from gracl.similarity import Backend, Device, Index, Options, Search, resolve
from gracl.types import NOISE, Assignment, Feature

_NO_GRAPH = csr_array(np.zeros((0, 0), np.float32))


def relate(
    features: Feature[ndarray, "images dim"],
    *,
    epoch: int = 0,
    cameras: Int64[ndarray, "images"] | None = None,
    previous: Int64[ndarray, "images_before"] | None = None,
    centre: Centre = "none",
    centre_k: int = 150,
    k1: int = 30,
    k2: int = 6,
    camera_aware: bool = False,
    k1_intra: int = 5,
    k1_inter: int = 20,
    k2_intra: int = 2,
    k2_inter: int = 4,
    clustering: Clustering = "dbscan",
    eps: Eps = 0.6,
    eps_first: float = 1.0,
    eps_rise: int = 6,
    min_samples: int = 4,
    min_cluster_size: int = 8,
    reliability: float = 0.0,
    noise: Noise = "left_out",
    on_collapse: OnCollapse = "stop",
    least_clusters: int = 2,
    relax_factor: float = 1.1,
    relax_tries: int = 5,
    inter_rule: InterRule = "mean",
    intra_rule: IntraRule = "mean",
    foreign: Foreign = "samples",
    space: Space = "cosine",
    centroids: int = 10,
    rule_temperature: float = 0.05,
    trim: float = 0.0,
    instances: int = 0,
    consensus: int = 0,
    camera_proxies: bool = False,
    precision: Literal["float32", "float16"] = "float32",
    search: Search = "exact",
    index: Index = "ivf",
    effort: int = 0,
    backend: Backend = "auto",
    block_rows: int = 4096,
    shards: int = 1,
    threads: int = 0,
    device: Device = "auto",
    find: Find = find_here,
    progress: Progress | None = None,
) -> Assignment:
    """What one epoch believes of all images: a label for each, and two proxies for each cluster (method.md 4.6).

    Longer than our rule for functions because it names every choice there is.

    Args:
        features: unit rows in order of index, float32 or float16, in memory or memory-mapped.
        epoch: written into the assignment; instances and eps depend on it where they are asked to.
        cameras: who took each image; for `camera_aware`, `centre`, `camera_proxies`, and figures where they are known.
        previous: the labels of the epoch before, for on_collapse="keep_previous".
        centre: "camera" clusters features less their camera's mean, "local" less that of their `centre_k` nearest,
            see `centring.py`; proxies (but by `space` "jaccard") and instances are mined from features as they came.
        k1, k2: see `reciprocal_weights`.
        camera_aware, k1_intra, k1_inter, k2_intra, k2_inter: lists by camera instead of k1 and k2, see
            `cameras.camera_weights`.
        clustering, eps, min_samples, min_cluster_size: see `clustering.cluster`; for "auto" `radius.choose_eps`.
        eps_first, eps_rise: the share of eps at epoch 0, and when it is whole, see `radius.share_of_eps`; not for
            hdbscan, which has none.
        reliability: smallest overlap of clusters at neighbouring eps, see `refining.reliable_labels`; 0 for no test.
        noise: "own_clusters" makes every image that is noise a cluster of one, after all else about clusters.
        on_collapse, least_clusters, relax_factor, relax_tries: what is done about too few clusters, see
            `collapse.Fallback`; proxies are always mined from these features.
        inter_rule, intra_rule, foreign, space, centroids, rule_temperature, trim: see `mine_proxies`.
        instances: members of each cluster that the assignment shows, see `pick_instances`; 0 for none.
        consensus: clusters of each image's neighbours that it tells, see `neighbour_consensus`; 0 for none.
        camera_proxies: the assignment shows a proxy for each cluster in each camera, see `mine_camera_proxies`.
        precision: float16 rounds the features first: half the memory, and half the bytes on a network.
        search, index, effort, backend, block_rows, device: see `similarity.nearest`.
        shards: shares of the rows whose neighbours are looked for by themselves; the result does not depend on it.
        threads: CPU threads of all steps; 0 takes torch's number. Labels and proxies do not depend on it.
        find: who looks for the neighbours.
        progress: called with (phase, done, rows); the phases are centre (local), knn, jaccard, cluster, proxies and
            figures (weights, after knn, tells nothing).

    Returns:
        An assignment whose stats are seconds and peak memory by phase (`knn_s`, `knn_peak_mb` ...), `knn_recall`,
        `eps` (not for hdbscan), `collapsed` and what was done (`collapse.Settled`; not with on_collapse="stop"),
        `unreliable` and `own_clusters` (shares of the images; where asked for), `silhouette` (see
        `diagnostics.silhouette`; on the distances up to 1) and what `diagnostics.describe` tells.

    Raises:
        ConfigError: options out of range.
        NonFiniteValue: NaN or infinity in the features.
        GraclError: features that are empty, of another dtype, not of unit length, or too many for memory.
        ClusteringCollapsed: fewer than `least_clusters`, whatever `on_collapse` could do about it.
    """
    searched: dict[str, Any] = {"search": search, "index": index, "effort": effort, "backend": backend}
    searched |= {"block_rows": block_rows, "threads": threads, "device": device}
    clustered: dict[str, Any] = {"clustering": clustering, "min_samples": min_samples}
    clustered["eps"] = largest_eps(eps, clustering)
    clustered |= {"min_cluster_size": min_cluster_size}
    mined: dict[str, Any] = {"inter_rule": inter_rule, "intra_rule": intra_rule, "foreign": foreign, "space": space}
    mined |= {"centroids": centroids, "rule_temperature": rule_temperature, "trim": trim, "block_rows": block_rows}
    check_settings(k1, k2, shards, search, camera_aware, centre)
    check_list_lengths(k1_intra, k1_inter, k2_intra, k2_inter)
    check_rules(**mined)
    resolve(Options(**searched))
    share = share_of_eps(epoch, eps_first, eps_rise)
    check_refining(reliability, noise, clustering, clustered["eps"] * share)
    fallback = Fallback(on_collapse, least_clusters, relax_factor, relax_tries)
    fallback.check(clustering)
    cluster(_NO_GRAPH, **clustered)  # its options and packages are looked at all the same
    check_extras(centre, centre_k, instances, consensus, len(features))
    check_cameras(cameras, len(features), camera_aware or centre == "camera" or camera_proxies)
    check_features(features, k1_intra + k1_inter if camera_aware else k1, threads)
    lengths = k1_intra + k1_inter if camera_aware else k1
    check_memory(features, lengths, clustering in WHOLE, camera_aware, searched, centre=centre, centre_k=centre_k)
    features = features.astype(np.float16, copy=False) if precision == "float16" else features
    rows, stats = len(features), dict[str, float]()
    tell = progress or (lambda phase, done, rows: None)
    compared = centred(
        features,
        cameras,
        centre=centre,
        centre_k=centre_k,
        shards=shards,
        find=find,
        stats=stats,
        tell=tell,
        searched=searched,
    )
    ks: dict[str, int] = {"k1": k1, "k2": k2}
    if camera_aware:
        ks = {"k1_intra": k1_intra, "k1_inter": k1_inter, "k2_intra": k2_intra, "k2_inter": k2_inter}
    by = cameras if camera_aware else None
    table, weights = sets_of(compared, by, ks, shards=shards, find=find, stats=stats, tell=tell, searched=searched)
    del compared
    with phase("jaccard", stats):
        inverted = invert(weights)
        # DBSCAN asks for nothing beyond eps, and what lies between eps and 1 is by far the most.
        gap = EPS_GAP if reliability else 0.0
        limit = 1.0 if clustering in WHOLE else clustered["eps"] + gap
        distance = shared_distance(weights, inverted, limit=limit, threads=threads, progress=telling(tell, "jaccard"))
    with phase("cluster", stats):
        if eps == "auto":
            clustered["eps"] = choose_eps(distance, weights, inverted, min_samples=min_samples, threads=threads)
        clustered["eps"] *= share
        if clustering not in WHOLE:
            stats["eps"] = clustered["eps"]
        labels = labels_at(distance, clustered, reliability, stats)
        del distance  # a larger eps makes a larger one

        def at(wider: float) -> Int64[ndarray, "images"]:
            reaching = shared_distance(weights, inverted, limit=wider + gap, threads=threads)
            return labels_at(reaching, clustered | {"eps": wider}, reliability, stats)

        settled = settle(
            labels, fallback, eps=clustered["eps"], largest=1 - gap, again=at, previous=previous, epoch=epoch
        )
        labels = settled.labels
        stats |= settled.figures
        if "eps" in stats:
            stats["eps"] = settled.eps
    tell("cluster", rows, rows)
    check_clusters(
        labels,
        clustering,
        clustered["eps"],
        chosen=eps == "auto",
        reliability=reliability,
        least=least_clusters,
        tried=settled.tried,
    )
    if noise == "own_clusters":
        stats["own_clusters"] = float((labels == NOISE).mean())
        labels = own_clusters(labels)
    with phase("proxies", stats):
        proxies = mine_proxies(
            features,
            labels,
            neighbors=table if search == "exact" and centre == "none" else None,
            graph=(weights, inverted),
            threads=threads,
            device=device,
            **mined,
        )
        shown = pick_instances(features, labels, instances, epoch=epoch) if instances else None
        seen = None
        if camera_proxies and cameras is not None:
            seen = mine_camera_proxies(features, labels, cameras, block_rows=block_rows, threads=thread_count(threads))
        told = neighbour_consensus(weights, labels, consensus, threads=threads) if consensus else None
    tell("proxies", rows, rows)
    with phase("figures", stats):
        stats["silhouette"] = silhouette(weights, inverted, labels, threads=threads)
        stats["covered_silhouette"] = stats["silhouette"] * float((labels != NOISE).mean())
        stats |= describe(features, labels, proxies, cameras=cameras, threads=threads)
    tell("figures", rows, rows)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # what the search held; ranks may share the GPU
    return Assignment(epoch, labels, proxies, stats, instances=shown, consensus=told, camera_proxies=seen)
