"""A sweep over settings through Ray Tune, each trial a training as at its own door: table, pictures, best preset.

python pipelines/tune.py tune_configs/temperatures.yaml trials=24 out=sweeps/temperatures
ray job submit --working-dir . -- python pipelines/tune.py tune_configs/temperatures.yaml out=/shared/sweep
"""

from gracl.cli import door
from gracl.experiments import TuneConfig

if __name__ == "__main__":
    door(TuneConfig, "gracl.runtime.sweep:sweep", __doc__ or "")
