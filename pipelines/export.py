"""A checkpoint as one file that runs without gracl, held against PyTorch: ONNX, or a program of torch.export.

python pipelines/export.py checkpoint=runs/first/epoch-0010 out=exported
python pipelines/export.py checkpoint=runs/first/epoch-0010 out=exported_torch format=torch_export
"""

from gracl.cli import door
from gracl.uses import ExportConfig

if __name__ == "__main__":
    door(ExportConfig, "gracl.runtime.export:export", __doc__ or "")
