"""PyTorch's settings of the process or thread, which belong to the caller and are kept away from the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_settings(device: torch.device) -> Iterator[None]:
    """A context without autograd, autocast and inference mode, whichever of them are on around it.

    Autocast would choose other dtypes than the model's, and a tensor made in inference mode could never be changed
    outside it. The default dtype and the default device cannot be kept away here: code names both where it makes a
    tensor.
    """
    with torch.inference_mode(False), torch.no_grad():
        if torch.is_autocast_enabled(device.type):
            with torch.autocast(device.type, enabled=False):
                yield
        else:
            yield
