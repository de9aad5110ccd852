"""Which device `auto` is, what is said where the one asked for is not there, and how many threads the CPU gets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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


@contextlib.contextmanager
def threads_of(count: int) -> Iterator[None]:
    """So many CPU threads for the length of the block; 0 = as they are.

    Raises:
        ConfigError: a negative count.
    """
    if count < 0:
        raise ConfigError(f"{count} threads were asked for.", next="Take --threads 1 or more; 0 = as torch chooses.")
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
