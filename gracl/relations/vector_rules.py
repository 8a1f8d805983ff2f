"""The rules of `choices.py` that need products of images with one vector a cluster: its centroid, or its proxy."""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy import ndarray
from torch import Tensor

from gracl.relations.choices import InterRule
from gracl.relations.scoring import Score, Table, against, float32_error, in_blocks, settled

# Similarities held at a time: 256 MiB of float32.
_MOST_VALUES = 2**26


def vector_scores(
    rule: InterRule,
    table: Table,
    vectors: Float64[ndarray, "clusters dim"],
    *,
    centroids: int,
    rule_temperature: float,
) -> Float64[ndarray, "images"]:
    """Decisive scores by B3, B4 or B5 where each other cluster is one vector, for two clusters or more."""
    rows = table.contested
    errors = np.full(len(rows), float32_error(table.dim))
    if rule == "log_sum_exp":
        score = log_sum_exp_of_vectors(table, vectors, rule_temperature)
        errors += rule_temperature * float32_error(len(vectors))
    else:
        count = centroids if rule == "nearest_centroids" else 1
        score = nearest_vectors(table, vectors, count, np.empty(0, np.int64))
    return settled(table, rows, score(rows, torch.float32), errors, score)


def centroids_of(sums: Float64[ndarray, "clusters dim"]) -> Float64[ndarray, "clusters dim"]:
    """The mean of each cluster's members brought to length 1.

    So a loose cluster is as near as a tight one in the same direction, as in the cosine of everything else. A mean of
    zero has no direction and stays zero.
    """
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.asarray(np.divide(sums, lengths, out=np.zeros_like(sums), where=lengths > 0))


def nearest_vectors(
    table: Table, vectors: Float64[ndarray, "clusters dim"], count: int, noise: Int64[ndarray, "noise"]
) -> Score:
    """B4: mean similarity to the `count` nearest of the other clusters' vectors and of the noise images.

    To all of them where there are fewer. With a count of 1 it is B3 over vectors.
    """
    toward = _toward(table, vectors)
    count = min(count, len(vectors) - 1 + len(noise))

    def score(rows: ndarray, dtype: torch.dtype) -> Tensor:
        nearest = toward(rows, dtype).topk(min(count, len(vectors)), dim=1).values
        for similarity, _, _ in against(table, rows, noise, dtype):
            both = torch.cat([nearest, similarity], dim=1)
            nearest = both.topk(min(count, both.shape[1]), dim=1).values
        return nearest.double().mean(1)

    return in_blocks(score, _rows_at_a_time(table, vectors))


def log_sum_exp_of_vectors(table: Table, vectors: Float64[ndarray, "clusters dim"], temperature: float) -> Score:
    """B5 over the vectors of the other clusters."""
    toward = _toward(table, vectors)

    def score(rows: ndarray, dtype: torch.dtype) -> Tensor:
        sums = toward(rows, dtype).div_(temperature).logsumexp(1).double()
        return temperature * (sums - math.log(len(vectors) - 1))

    return in_blocks(score, _rows_at_a_time(table, vectors))


def _toward(table: Table, vectors: Float64[ndarray, "clusters dim"]) -> Callable[[ndarray, torch.dtype], Tensor]:
    """Similarities of some rows to the vectors of all clusters, minus infinity to that of their own."""
    columns = functools.cache(lambda dtype: torch.from_numpy(vectors).to(table.place).to(dtype).T)

    def similarities(rows: ndarray, dtype: torch.dtype) -> Tensor:
        own = torch.from_numpy(table.labels[rows]).to(table.place)
        return (table.read(rows, dtype) @ columns(dtype)).scatter_(1, own[:, None], -math.inf)

    return similarities


def _rows_at_a_time(table: Table, vectors: ndarray) -> int:
    return max(1, min(table.step, _MOST_VALUES // len(vectors)))
