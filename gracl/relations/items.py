"""Rules of method.md 4.5 B where each other cluster is one item: its centroid (B4, A2) or its inter proxy (A3).

| inter_rule | score of i, e_k the items of the other clusters |
| --- | --- |
| mean | mean of f_i . e_k |
| nearest_centroids | mean of the n highest f_i . e_k |
| log_sum_exp | t log(mean of exp(f_i . e_k / t)) |
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float64
from numpy import ndarray
from torch import Tensor

from gracl.relations.scoring import Score, Table, float32_error, in_blocks, settled

# Similarities held at a time: 256 MiB of float32.
_MOST_VALUES = 2**26


Similarities = Callable[[ndarray, torch.dtype], Tensor]


def item_scores(
    rule: str, table: Table, items: Float64[ndarray, "clusters dim"], *, centroids: int, rule_temperature: float
) -> Float64[ndarray, "images"]:
    """Decisive scores against one item of each other cluster, for two clusters or more; see `settled`."""
    score = {
        "mean": lambda: nearest_items(table, items, len(items)),
        "nearest_centroids": lambda: nearest_items(table, items, centroids),
        "log_sum_exp": lambda: log_sum_exp_of_items(table, items, rule_temperature),
    }[rule]()
    rows = table.contested
    errors = np.full(len(rows), float32_error(table.dim))
    if rule == "log_sum_exp":
        errors += rule_temperature * float32_error(len(items))
    return settled(table, rows, score(rows, torch.float32), errors, score)


def centroids_of(sums: Float64[ndarray, "clusters dim"]) -> Float64[ndarray, "clusters dim"]:
    """The means of the clusters brought to length 1; a mean of zero has no direction and stays zero.

    So a loose cluster is as near as a tight one in the same direction, as in the cosine of everything else.
    """
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    centres: ndarray = np.divide(sums, lengths, out=np.zeros_like(sums), where=lengths > 0)
    return centres


def nearest_items(table: Table, items: Float64[ndarray, "clusters dim"], count: int) -> Score:
    """Mean similarity to the `count` nearest items of other clusters, to all of them where there are fewer."""
    foreign, count = _foreign(table, items), min(count, len(items) - 1)
    return _in_blocks(lambda rows, dtype: foreign(rows, dtype).topk(count, dim=1).values.double().mean(1), table, items)


def log_sum_exp_of_items(table: Table, items: Float64[ndarray, "clusters dim"], temperature: float) -> Score:
    """t log(mean of exp(s / t)) over the items of other clusters."""
    foreign, others = _foreign(table, items), math.log(len(items) - 1)

    def score(rows: ndarray, dtype: torch.dtype) -> Tensor:
        return temperature * (foreign(rows, dtype).div_(temperature).logsumexp(1).double() - others)

    return _in_blocks(score, table, items)


def _foreign(table: Table, items: Float64[ndarray, "clusters dim"]) -> Similarities:
    """What gives the similarities of rows to all items, minus infinity for their own."""
    columns = functools.cache(lambda dtype: torch.from_numpy(items).to(table.place).to(dtype).T)

    def similarities(rows: ndarray, dtype: torch.dtype) -> Tensor:
        own = torch.from_numpy(table.labels[rows]).to(table.place)
        return (table.read(rows, dtype) @ columns(dtype)).scatter_(1, own[:, None], -math.inf)

    return similarities


def _in_blocks(score: Similarities, table: Table, items: ndarray) -> Score:
    return in_blocks(score, max(1, min(table.step, _MOST_VALUES // len(items))))
