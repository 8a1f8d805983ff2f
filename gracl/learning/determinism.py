"""The same bits from the same command: torch's deterministic algorithms alone."""

import os

import torch

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def be_deterministic() -> None:
    """Switches this process over; to be called before it first works on a GPU, whose library reads the environment.

    What has no deterministic form then raises, and says its name. On a CPU nothing of ours is slower for it.
    """
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
