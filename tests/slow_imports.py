"""What a rank of a training imports and takes seconds, for the process that `trainings.forks` forks."""

from importlib import import_module

from ral.models import import_timm

for module in ("backend", "build", "checkpoint", "device", "outputs", "__main__"):
    import_module(f"ral.training.{module}")
for module in ("deepspeed", "deepspeed.runtime.engine"):
    import_module(module)
import_timm()
