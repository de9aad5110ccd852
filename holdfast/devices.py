"""Which device `auto` is, and what is said where the one that was asked for is not there."""

from __future__ import annotations

import torch

from holdfast.errors import ConfigError


def device_of(name: str) -> torch.device:
    """The device of a name.

    Args:
        name: auto (a CUDA GPU where there is one, else the CPU), cpu, cuda, cuda:1...

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f'no device is called "{name}".', next="Take auto, cpu, cuda or cuda:1.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f'"{name}" was asked for; this machine has {count} CUDA devices.', next="Take --device auto.")
    return device
