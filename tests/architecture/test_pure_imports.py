"""The mathematics imports on a laptop with neither Ray nor MLflow."""

import subprocess
import sys

from tests.architecture.imports import ROOT, sources

CODE = """
import sys
for name in ("ray", "mlflow", "pydantic"):
    sys.modules[name] = None  # importing it raises ImportError
import importlib
for module in {modules!r}:
    importlib.import_module(module)
import gracl
print(gracl.relate.__name__)
"""


def test_every_pure_module_imports_without_ray_and_mlflow():
    apart = (
        "gracl.runtime",
        "gracl.config",
        "gracl.sections",
        "gracl.idle",
        "gracl.experiments",
        "gracl.uses",
        "gracl.use_sections",
        "gracl.cli",
    )
    modules = [module for module in sources("gracl") if not module.startswith(apart)]
    assert len(modules) > 20
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(modules=modules)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "relate"
