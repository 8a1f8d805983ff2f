"""Query expansion: a query asks again together with what it found, in the place where they all lie.

Average query expansion (Chum et al., ICCV 2007) with the weights of Radenović, Tolias and Chum (TPAMI 2019): a
neighbour of similarity s counts s**alpha. The same for the gallery is known as database-side augmentation
(Arandjelović and Zisserman, CVPR 2012). Identities and cameras are not asked.
"""

import numpy as np
from jaxtyping import Float32, Int32
from numpy import ndarray

from gracl.errors import ConfigError, expected
from gracl.similarity import nearest, top_k

_ROWS = 4096


def expand(
    query: Float32[ndarray, "queries dim"],
    gallery: Float32[ndarray, "gallery dim"],
    *,
    k: int = 5,
    alpha: float = 3.0,
    database: bool = False,
    threads: int = 0,
) -> tuple[Float32[ndarray, "queries dim"], Float32[ndarray, "gallery dim"]]:
    """Each query becomes the unit sum of itself and its k nearest gallery rows, weighted by similarity to the alpha.

    Rows with a similarity of 0 or less do not join. Queries do not see each other. Equally similar rows join in order
    of gallery index.

    Args:
        query: unit feature rows.
        gallery: unit feature rows.
        k: nearest gallery rows that join; default as in FastReID, like alpha.
        alpha: 0 weighs all alike (the average query expansion).
        database: expand every gallery row by its k nearest others, too. Both sides use rows as they came.
        threads: CPU threads of the search; 0 leaves torch's number as it is.

    Returns:
        Query and gallery to be ranked; the gallery as it came, unless `database`.

    Raises:
        ConfigError: options out of range, or more neighbours than there are.
        GraclError: features that are not finite.
    """
    check_options(k, alpha, database, len(gallery))
    expanded = _joined(query, gallery, *top_k(query, gallery, k, threads=threads), alpha)
    if not database:
        return expanded, gallery
    near = nearest(gallery, k + 1, threads=threads)  # each row is the first of its own list
    return expanded, _joined(gallery, gallery, near.indices[:, 1:], near.similarities[:, 1:], alpha)


def check_options(k: int, alpha: float, database: bool, gallery: int) -> None:
    """Refuses what cannot be done with a gallery of that size; see `expand`.

    Raises:
        ConfigError: says what came.
    """
    if k < 1 or not 0 <= alpha < np.inf:
        raise ConfigError(expected("k >= 1 and a finite alpha >= 0", f"k={k}, alpha={alpha}", "correct them"))
    if k > gallery - database:
        raise ConfigError(
            expected(f"expansion.k of at most {gallery - database} other gallery images", k, "lower expansion.k")
        )


def _joined(
    rows: Float32[ndarray, "rows dim"],
    gallery: Float32[ndarray, "gallery dim"],
    indices: Int32[ndarray, "rows k"],
    similarities: Float32[ndarray, "rows k"],
    alpha: float,
) -> Float32[ndarray, "rows dim"]:
    """Unit sums of rows and their weighted neighbours, summed in double precision, some thousand rows at a time."""
    near = similarities.astype(np.float64)
    weights = np.where(near > 0, np.abs(near) ** alpha, 0.0)
    joined = np.empty_like(rows)
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        sums = rows[part].astype(np.float64)
        for place in range(indices.shape[1]):
            sums += weights[part, place, None] * gallery[indices[part, place]]
        joined[part] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return joined
