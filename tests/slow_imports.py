"""What takes seconds to import, for the process that `forks` forks: not Prefect, which reads its settings then."""

from importlib import import_module

from ral.models import import_timm

for module in ("backend", "build", "checkpoint", "device", "outputs", "__main__"):
    import_module(f"ral.training.{module}")
for module in ("deepspeed", "deepspeed.runtime.engine"):
    import_module(module)
import_timm()

for module in (
    "ral.data.validation.run",
    "ral.data.prepare",
    "ral.evaluation.compare",
    "dvc.api",
    "dvc.repo",
):
    import_module(module)
