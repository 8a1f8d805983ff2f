"""A synthetic world as a folder of pictures in Market-1501 naming, for trying things out.

python pipelines/synthesize.py out=world train_objects=100 cameras=6 height=64 width=32
"""

from gracl.cli import door
from gracl.config import SynthesizeConfig

if __name__ == "__main__":
    door(SynthesizeConfig, "gracl.runtime.synthesize:synthesize", __doc__ or "")
