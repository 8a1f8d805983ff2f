"""What may be chosen where proxies are mined (method.md 4.5, rows A, B, C, K and L), and what goes together.

The foreign items of an image are grouped by cluster, and a rule of row B reads the groups:

| A | foreign | items of another cluster k | items of noise |
| - | --- | --- | --- |
| A1 | samples | its members | none |
| A2 | centroids | one: its centroid c_k | none |
| A3 | proxies | one: the inter proxy that A1 gives it | none |
| A4 | noise_too | its members | each noise image, a cluster of its own |

| B | inter_rule | score of i; the member with the lowest is the inter proxy |
| - | --- | --- |
| B1 | mean | mean of s(i, x) over the items x |
| B2 | cluster_mean | mean over the groups of the mean of s(i, x) over their items |
| B3 | nearest_sample | max of s(i, x) over the items |
| B4 | nearest_centroids | mean of the n highest s(i, c), c the centroids of the groups |
| B5 | log_sum_exp | t log(mean of exp(s(i, x) / t) over the items) |

| C | intra_rule | score of i; the member with the lowest is the intra proxy |
| - | --- | --- |
| C1 | mean | mean of s(i, j) over the other members |
| C2 | minimum | min of s(i, j) over the other members |

s is the inner product of features (K1, cosine) or 1 - Jaccard distance (K2, jaccard), which is known of images only.
A pair that would be another pair under a second name is refused.
"""

import typing
from collections.abc import Callable
from typing import Literal

from numpy import ndarray

from gracl.errors import ConfigError, expected

Foreign = Literal["samples", "centroids", "proxies", "noise_too"]
InterRule = Literal["mean", "cluster_mean", "nearest_sample", "nearest_centroids", "log_sum_exp"]
IntraRule = Literal["mean", "minimum"]
Space = Literal["cosine", "jaccard"]

# Foreign similarity of all images, so that of those able (ascending) the lowest of each cluster can be told. Where
# images are given, one for each cluster, they are the foreign items (A3).
Scores = Callable[[ndarray, ndarray | None], ndarray]

# The rules that are scored in linear time (`closed.py`).
CLOSED = ("mean", "cluster_mean")

# Below, similarity / t leaves float32; above, the logarithm has fewer digits than ties need.
_COLDEST, _HOTTEST = 1e-6, 100.0
# With half of all images out, the others would be the outliers.
_MOST_TRIMMED = 0.5
_OF_ITEMS = ("mean", "nearest_sample", "log_sum_exp")
_OF_JACCARD = ("mean", "cluster_mean", "nearest_sample")


def check_rules(
    *,
    inter_rule: str,
    intra_rule: str,
    foreign: str,
    space: str,
    centroids: int,
    rule_temperature: float,
    trim: float,
    block_rows: int,
) -> None:
    """Refuses what no rule can do, and rules that do not go together.

    Raises:
        ConfigError: a choice that is not known, a number out of range, or a pair without a meaning of its own.
    """
    asked = {"inter_rule": inter_rule, "intra_rule": intra_rule, "foreign": foreign, "space": space}
    for (what, came), known in zip(asked.items(), (InterRule, IntraRule, Foreign, Space), strict=True):
        if came not in (names := typing.get_args(known)):
            raise ConfigError(expected(f"{what} among {', '.join(names)}", came, "choose one of them"))
    if centroids < 1 or block_rows < 1:
        came = f"{centroids} and {block_rows}"
        raise ConfigError(expected("centroids >= 1 and block_rows >= 1", came, "raise them to 1 or more"))
    if not _COLDEST <= rule_temperature <= _HOTTEST:
        bounds = f"{_COLDEST} <= rule_temperature <= {_HOTTEST}"
        raise ConfigError(expected(bounds, rule_temperature, "the usual value is 0.05"))
    if not 0 <= trim < _MOST_TRIMMED:
        raise ConfigError(expected(f"0 <= trim < {_MOST_TRIMMED}", trim, "0 trims nothing, 0.02 is usual"))
    _check_pairs(inter_rule, foreign, space)


def _check_pairs(inter_rule: str, foreign: str, space: str) -> None:
    """Refuses rules that do not go together."""
    if foreign == "centroids" and inter_rule not in _OF_ITEMS:
        raise ConfigError(
            expected(
                f"inter_rule among {', '.join(_OF_ITEMS)} with foreign=centroids",
                inter_rule,
                "take mean for cluster_mean (one item a cluster), and nearest_centroids with foreign=samples",
            )
        )
    if space == "jaccard" and (foreign == "centroids" or inter_rule not in _OF_JACCARD):
        raise ConfigError(
            expected(
                f"inter_rule among {', '.join(_OF_JACCARD)} and foreign without centroids with space=jaccard",
                f"inter_rule={inter_rule}, foreign={foreign}",
                "use space=cosine: a centroid has no neighbours, and other sums are not made on the graph",
            )
        )
