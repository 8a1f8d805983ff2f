"""Groups of images with like surroundings, to stand for cameras where nobody knows them.

Much of what makes two objects seen by one camera alike, and one object seen by two unlike, is the place and its light.
Methods that know cameras take it away, and gain most of all that is gained on top of clustering (docs/results.md).
Here the places are found instead of known: k-means on the colours along the edges of the pictures
(`images/edges.py`), where the object is not. Groups and cameras need not be as many: a camera that sees two places may
count as two.

No published method known to us does just this. Grouping by style to stand for domains is known from domain
generalisation (Matsuura and Harada, AAAI 2020, on early layers of the network), and that Re-ID features know
backgrounds from Tian et al., CVPR 2018.
"""

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray
from threadpoolctl import threadpool_limits

from gracl.errors import GraclError, expected
from gracl.randomness import rng

# Rows that the centres are found from, all others being given to the nearest; k-means of 24 values needs no more.
SAMPLE = 50_000
# With four, k-means ended elsewhere for other seeds (docs/results.md, section 22).
_STARTS = 32


def group_surroundings(
    edges: Float32[ndarray, "images colours"], *, groups: int = 8, seed: int = 0
) -> Int64[ndarray, "images"]:
    """The group of each image, 0 to `groups - 1` (fewer where there are fewer different rows).

    Each column is brought to mean 0 and deviation 1 first, so that dark and bright edges count alike. The same on one
    machine for any number of threads.

    Args:
        edges: from `edges.edge_colours`, in order of index.
        groups: how many are looked for.
        seed: of k-means, the best of 32 starts.

    Raises:
        GraclError: fewer images than groups, values that are not finite, or edges that are all alike.
    """
    from sklearn.cluster import KMeans  # a second of import that only these runs need

    if len(edges) < groups:
        do = "lower surroundings.groups"
        raise GraclError(expected(f"as many images as the {groups} groups of surroundings", len(edges), do))
    if not np.isfinite(edges).all():
        raise GraclError(expected("finite colours of edges", "NaN or infinity", "use edges.edge_colours"))
    mean, deviation = edges.mean(0, dtype=np.float64), edges.std(0, dtype=np.float64)
    rows = ((edges - mean) / np.where(deviation > 0, deviation, 1)).astype(np.float32)
    dice = rng(seed, "surroundings")
    sample = rows
    if len(rows) > SAMPLE:
        sample = rows[np.sort(dice.choice(len(rows), SAMPLE, replace=False))]
    different = len(np.unique(sample, axis=0))
    if different < 2:
        do = "take a method that knows no cameras, as methods/gracl_plus.yaml"
        raise GraclError(expected("pictures whose edges differ", f"{len(edges)} with the same", do))
    with threadpool_limits(1):  # sums in one order, so that the groups do not hang on the machine's cores
        means = KMeans(min(groups, different), n_init=_STARTS, random_state=int(dice.integers(2**31))).fit(sample)
        found: ndarray = means.predict(rows).astype(np.int64)
    return found
