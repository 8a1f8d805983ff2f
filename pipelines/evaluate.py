"""mAP, mINP and CMC of a checkpoint, with per-query results and a sheet of ranked images.

python pipelines/evaluate.py checkpoint=runs/first/epoch-0050 data.root=shards/market out=report
python pipelines/evaluate.py checkpoint=runs/first/epoch-0050 data.root=shards/market out=report flip=true rerank=true
"""

from gracl.cli import door
from gracl.uses import EvaluateConfig

if __name__ == "__main__":
    door(EvaluateConfig, "gracl.runtime.evaluate:evaluate", __doc__ or "")
