"""gracl: unsupervised object re-identification by Global Relation-Aware Contrast Learning, on Ray.

The public face: plain arrays in, plain arrays out. Importing it never imports Ray or MLflow. Each name is fetched when
it is first asked for, because every process of a cluster imports this package and few of them need torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "ProxyContrast": "gracl.learning.losses",
    "ShardStore": "gracl.images.shards",
    "build_encoder": "gracl.learning.encoder",
    "dbscan": "gracl.relations.clusters",
    "embed": "gracl.embedding",
    "evaluate_retrieval": "gracl.retrieval.metrics",
    "identity_plan": "gracl.images.plans",
    "jaccard_distance": "gracl.relations.jaccard",
    "load_encoder": "gracl.learning.checkpoint",
    "mine_proxies": "gracl.relations.proxies",
    "nearest": "gracl.similarity",
    "rank": "gracl.retrieval.ranking",
    "relate": "gracl.relations.relate",
    "scan_plan": "gracl.images.plans",
}

__all__ = list(_HOMES)

if TYPE_CHECKING:
    from gracl.embedding import embed
    from gracl.images.plans import identity_plan, scan_plan
    from gracl.images.shards import ShardStore
    from gracl.learning.checkpoint import load_encoder
    from gracl.learning.encoder import build_encoder
    from gracl.learning.losses import ProxyContrast
    from gracl.relations.clusters import dbscan
    from gracl.relations.jaccard import jaccard_distance
    from gracl.relations.proxies import mine_proxies
    from gracl.relations.relate import relate
    from gracl.retrieval.metrics import evaluate_retrieval
    from gracl.retrieval.ranking import rank
    from gracl.similarity import nearest


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gracl' has no attribute {name!r}; it offers {', '.join(_HOMES)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
