"""Holdfast: how robust is this self-supervised vision encoder, on every task that it serves, and how to harden it?

The public names are the verbs of the command line. They are looked up when first used, so that `import holdfast`
imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.verbs import attack, bench, corrupt, load, ls, probe, report, run, train, verify

__version__ = "0.1.0"

__all__ = ["__version__", "attack", "bench", "corrupt", "load", "ls", "probe", "report", "run", "train", "verify"]


def __getattr__(name: str) -> Any:
    """A public verb from `holdfast.verbs` (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    from holdfast import verbs

    return getattr(verbs, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
