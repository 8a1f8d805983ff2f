"""A list of presets x seeds x data sets trained through Ray Tune, side by side in one table.

python pipelines/compare.py pipelines/comparisons/demo.yaml out=comparisons/demo seeds=[0,1] concurrent=2
ray job submit --working-dir . -- python pipelines/compare.py pipelines/comparisons/demo.yaml out=/shared/demo
"""

from gracl.cli import door
from gracl.experiments import CompareConfig

if __name__ == "__main__":
    door(CompareConfig, "gracl.runtime.compare:compare", __doc__ or "")
