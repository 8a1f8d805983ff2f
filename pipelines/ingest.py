"""A raw folder to shards: checks every image, then writes Arrow files and, last, the manifests.

python pipelines/ingest.py layout=market1501 raw=Market-1501-v15.09.15 out=shards/market
python pipelines/ingest.py layout=unlabelled raw=crops out=shards/crops on_bad_image=skip
"""

from gracl.cli import door
from gracl.config import IngestConfig

if __name__ == "__main__":
    door(IngestConfig, "gracl.runtime.ingest:ingest", __doc__ or "")
