"""Shards to checkpoints: trains GRACL, or resumes the run of that name.

python pipelines/train.py pipelines/presets/market1501.yaml data.root=shards/market loss.inter_temperature=0.07
ray job submit --working-dir . -- python pipelines/train.py pipelines/presets/market1501.yaml data.root=s3://...
"""

from gracl.cli import door
from gracl.config import TrainConfig

if __name__ == "__main__":
    door(TrainConfig, "gracl.runtime.train:train", __doc__ or "")
