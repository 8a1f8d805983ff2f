"""What makes a member the proxy: the rules of method.md 4.5, rows B (foreign clusters) and C (the own one).

| B | inter_rule | score of i; the member with the lowest is the inter proxy |
| - | --- | --- |
| B1 | mean | mean of f_i . f_j over the samples j of other clusters |
| B2 | cluster_mean | mean over the other clusters of the mean of f_i . f_j over their samples |
| B3 | nearest_sample | max of f_i . f_j over the samples of other clusters |
| B4 | nearest_centroids | mean of the n highest f_i . c_k, c_k the centroids of other clusters |
| B5 | log_sum_exp | t log(mean of exp(f_i . f_j / t) over the samples of other clusters) |

| C | intra_rule | score of i; the member with the lowest is the intra proxy |
| - | --- | --- |
| C1 | mean | mean of f_i . f_j over the other members |
| C2 | minimum | min of f_i . f_j over the other members |

B1, B2 and C1 have closed forms and are scored in `proxies.py`, B4 and what else sees one item of each cluster in
`items.py`; here are the others that need products of blocks.
"""

import math
import typing
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64
from numpy import ndarray
from torch import Tensor

from gracl.errors import ConfigError, GraclError, expected
from gracl.kernels import compiled, over_rows
from gracl.relations.items import centroids_of, item_scores
from gracl.relations.scoring import Score, Table, against, float32_error, in_blocks, settled
from gracl.types import Neighbors

InterRule = Literal["mean", "cluster_mean", "nearest_sample", "nearest_centroids", "log_sum_exp"]
IntraRule = Literal["mean", "minimum"]
Foreign = Literal["samples", "centroids", "proxies", "noise_too"]

# The rules that are scored in `proxies.py`.
CLOSED = ("mean", "cluster_mean")
# The rules that speak of one item of each cluster, where these are centroids or proxies.
OF_ITEMS = ("mean", "nearest_centroids", "log_sum_exp")

# C2 looks through a cluster only; wider blocks would be mostly pairs of different clusters.
_CLUSTER_ROWS = 256
# Below, similarity / t leaves float32; above, the logarithm has fewer digits than ties need.
_COLDEST, _HOTTEST = 1e-6, 100.0


def check_rules(
    inter_rule: str,
    intra_rule: str,
    centroids: int,
    rule_temperature: float,
    block_rows: int,
    foreign: str = "samples",
    trim: float = 0.0,
) -> None:
    """Refuses what no rule can do.

    Raises:
        ConfigError: a rule that is not known, one that has no meaning for the foreign items, or a number out of range.
    """
    asked = (
        ("inter_rule", inter_rule, InterRule),
        ("intra_rule", intra_rule, IntraRule),
        ("foreign", foreign, Foreign),
    )
    for what, came, known in asked:
        if came not in (names := typing.get_args(known)):
            raise ConfigError(expected(f"{what} among {', '.join(names)}", came, "choose one of them"))
    if foreign in ("centroids", "proxies") and inter_rule not in OF_ITEMS:
        what = f"inter_rule among {', '.join(OF_ITEMS)} with foreign={foreign}, where a cluster is one item"
        raise ConfigError(expected(what, inter_rule, "nearest_centroids with centroids=1 looks at the nearest one"))
    if centroids < 1 or block_rows < 1:
        came = f"{centroids} and {block_rows}"
        raise ConfigError(expected("centroids >= 1 and block_rows >= 1", came, "raise them to 1 or more"))
    if not _COLDEST <= rule_temperature <= _HOTTEST:
        bounds = f"{_COLDEST} <= rule_temperature <= {_HOTTEST}"
        raise ConfigError(expected(bounds, rule_temperature, "the usual value is 0.05"))
    if not 0 <= trim < 0.5:
        raise ConfigError(expected("0 <= trim < 0.5", trim, "a few percent guard against wrong labels"))


def inter_scores(
    rule: InterRule,
    table: Table,
    sums: Float64[ndarray, "clusters dim"],
    *,
    centroids: int,
    rule_temperature: float,
    neighbors: Neighbors | None,
    threads: int,
) -> Float64[ndarray, "images"]:
    """Decisive scores by B3, B4 or B5, for two clusters or more; see `settled`.

    Raises:
        GraclError: a neighbour table that does not belong to the features.
    """
    rows = table.contested
    errors = np.full(len(rows), float32_error(table.dim))
    if rule == "nearest_sample":
        score = nearest_sample(table)
        proposed, errors = _by_table(neighbors, table, score, threads)
    elif rule == "nearest_centroids":
        return item_scores(rule, table, centroids_of(sums), centroids=centroids, rule_temperature=rule_temperature)
    else:
        score = log_sum_exp(table, rule_temperature)
        proposed = score(rows, torch.float32)
        errors += rule_temperature * float32_error(table.step)
    return settled(table, rows, proposed, errors, score)


def intra_scores(table: Table) -> Float64[ndarray, "images"]:
    """Decisive scores by C2; see `settled`."""
    rows = table.contested
    rows = rows[np.argsort(table.labels[rows], kind="stable")]
    score = minimum(table)
    errors = np.full(len(rows), float32_error(table.dim))
    return settled(table, rows, score(rows, torch.float32), errors, score)


def nearest_sample(table: Table) -> Score:
    """B3: similarity to the nearest sample of another cluster."""
    columns = table.clustered

    def score(rows: ndarray, dtype: torch.dtype) -> Tensor:
        nearest = [
            similarity.masked_fill_(same, -math.inf).amax(1)
            for similarity, same, _ in against(table, rows, columns, dtype)
        ]
        return torch.stack(nearest).amax(0)

    return in_blocks(score, table.step)


def log_sum_exp(table: Table, temperature: float) -> Score:
    """B5: t log(mean of exp(s / t)) over the samples of other clusters: between the mean (B1) and the nearest (B3).

    Without the mean, t log(sum), it would be more by t log(foreign samples), which is the same for all members of a
    cluster: the proxies are those of either. Blocks are summed in the precision asked for, and joined in double.
    """
    columns = table.clustered

    def score(rows: ndarray, dtype: torch.dtype) -> Tensor:
        parts = [
            similarity.masked_fill_(same, -math.inf).div_(temperature).logsumexp(1).double()
            for similarity, same, _ in against(table, rows, columns, dtype)
        ]
        foreign = torch.from_numpy(len(columns) - table.sizes[table.labels[rows]]).to(table.place)
        return temperature * (torch.stack(parts).logsumexp(0) - foreign.double().log())

    return in_blocks(score, table.step)


def minimum(table: Table) -> Score:
    """C2: lowest similarity to another member. Rows have to come in order of cluster.

    The two ends of a cluster's farthest pair have the same score, so the proxy is always the first of the two.
    """
    columns = table.clustered
    columns = columns[np.argsort(table.labels[columns], kind="stable")]
    ends = np.cumsum(table.sizes)

    def score(rows: ndarray, dtype: torch.dtype) -> Tensor:
        first, last = table.labels[rows[0]], table.labels[rows[-1]]
        members = columns[ends[first] - table.sizes[first] : ends[last]]
        images = torch.from_numpy(rows).to(table.place)[:, None]
        lowest = [
            similarity.masked_fill_(~same | (images == others), math.inf).amin(1)
            for similarity, same, others in against(table, rows, members, dtype)
        ]
        return torch.stack(lowest).amin(0)

    return in_blocks(score, min(table.step, _CLUSTER_ROWS))


def _by_table(
    neighbors: Neighbors | None, table: Table, score: Score, threads: int
) -> tuple[Float64[ndarray, "rows"], Float64[ndarray, "rows"]]:
    """B3 proposed: the first foreign neighbour where the lists have one (nothing is nearer), else a search of all.

    The similarities of the lists are exact but for their rounding to float32.
    """
    labels, rows = table.labels, table.contested
    known = np.full(len(labels), np.nan)
    if neighbors is not None:
        _check_neighbors(neighbors, len(labels))
        lists, near = neighbors.indices, neighbors.similarities
        over_rows(
            lambda start, stop: _first_foreign(lists, near, labels, start, stop, known), len(labels), threads=threads
        )
    proposed = known[rows]
    missing = np.isnan(proposed)
    proposed[missing] = score(rows[missing], torch.float32)
    return proposed, np.where(missing, float32_error(table.dim), float32_error(0))


def _check_neighbors(neighbors: Neighbors, images: int) -> None:
    """Refuses a table of other features."""
    indices = neighbors.indices
    if len(indices) != images or (images and not 0 <= indices.min() <= indices.max() < images):
        raise GraclError(
            expected(
                f"neighbours of {images} rows among themselves",
                f"a table of {indices.shape[0]} x {indices.shape[1]}",
                "make the table with similarity.nearest from the same features",
            )
        )


@compiled
@typing.no_type_check
def _first_foreign(lists, near, labels, start, stop, known):
    """Similarity of rows start..stop-1 to the first of their neighbours that is of another cluster."""
    for row in range(start, stop):
        for place in range(1, lists.shape[1]):
            c = labels[lists[row, place]]
            if c >= 0 and c != labels[row]:
                known[row] = near[row, place]
                break
