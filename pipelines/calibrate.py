"""The similarity from which on two pictures show the same object, for rates of false matches; kept by the checkpoint.

python pipelines/calibrate.py checkpoint=runs/first/epoch-0050 data.root=shards/market
"""

from gracl.cli import door
from gracl.uses import CalibrateConfig

if __name__ == "__main__":
    door(CalibrateConfig, "gracl.runtime.calibrate:calibrate", __doc__ or "")
