"""What to do when memory runs out in a training step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ral.errors import UserError
from ral.inference.prefetch import MicroBatch


@contextmanager
def explain_out_of_memory(device: torch.device, batch: MicroBatch) -> Iterator[None]:
    """Raise a UserError that says what to change if memory runs out inside the block."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        exhausted = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not exhausted and "allocate memory" not in str(error):
            raise
        images = len(batch.targets) if batch.mixup is None else len(batch.targets) // 2
        raise UserError(
            f"Out of memory on {device} with {images} images per forward and backward pass. Set "
            f"train.micro_batch to {max(1, images // 2)} or less (train.batch_size stays the same), or "
            "model.gradient_checkpointing to true.",
            kind="memory",
        ) from error
