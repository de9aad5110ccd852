"""The metrics of a run as TensorBoard reads them, beside `metrics.jsonl`. Needs the extra `tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from holdfast.errors import ExtraError

FOLDER = "tensorboard"


def require() -> None:
    """Raise `ExtraError` where tensorboard is not installed."""
    if find_spec("tensorboard") is None:
        raise ExtraError(
            "tensorboard is not installed.",
            asked="--tensorboard writes the metrics as its event files.",
            next='pip install "holdfast[tensorboard]", or leave --tensorboard out: metrics.jsonl holds the same.',
        )


class Events:
    """Event files of a run.

    Args:
        out: the run's folder; they lie in `tensorboard` within.
        step: steps that the state holds: what an earlier process wrote beyond it is shown no more.

    Raises:
        ExtraError: tensorboard is not installed.
    """

    def __init__(self, out: Path, step: int) -> None:
        require()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(out / FOLDER), purge_step=step + 1)

    def append(self, *lines: Mapping[str, float | int]) -> None:
        """Add lines as `metrics.jsonl` has them: every value but `step` is a curve; on disk when this returns."""
        for line in lines:
            for name, value in line.items():
                if name != "step":
                    self._writer.add_scalar(name, value, int(line["step"]))
        self._writer.flush()
