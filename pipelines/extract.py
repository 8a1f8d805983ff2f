"""The features of a split, as Arrow files.

python pipelines/extract.py checkpoint=runs/first/epoch-0050 data.root=shards/market split=gallery out=features
"""

from gracl.cli import door
from gracl.uses import ExtractConfig

if __name__ == "__main__":
    door(ExtractConfig, "gracl.runtime.extract:extract", __doc__ or "")
