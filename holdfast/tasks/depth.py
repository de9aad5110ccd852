"""Depth in metres for every pixel, through a head on a frozen encoder.

No protocol for attacks on depth is accepted. The one proposed here: the worst case per image over Auto-PGD (100 steps,
best iterate kept) on five harms, among them DepthPGD's with both of its terms, and two that need no truth; images are
compared by RMSE, and clean and attacked ones are read on the same pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from holdfast.attacks.harm import Out, Push, Rows, See
from holdfast.errors import ConfigError, DataError, nearest
from holdfast.models.dense_heads import DenseHead
from holdfast.models.encoder import Encoder
from holdfast.models.precision import Engine, Precision
from holdfast.tasks.depth_errors import MEASURES, Crop, Range, median_scaled, pixels, rmse, sums, values
from holdfast.tasks.depth_pushes import pushes
from holdfast.tasks.task import DENSE, Measure, Member
from holdfast.tasks.windows import WHOLE, Windows, dense_see

ENSEMBLE = ("silog_gradient", "l1_log", "l2", "near", "far")
"""Harms of the members."""


@dataclass(frozen=True)
class Depth:
    """Depth from a dense head.

    Attributes:
        head: maps an encoder's features to metres [b, h, w].
        windows: how images are read.
        max_depth: largest measured depth that counts, and largest prediction, in metres: of the images.
        near: smallest prediction in metres.
        crop: of the pixels that count: none, eigen (NYU Depth v2), eigen_kitti, garg (KITTI).

    Raises:
        ConfigError: an empty range, or no such crop.
    """

    head: DenseHead
    windows: Windows = WHOLE
    max_depth: float = 10.0
    near: float = 0.001
    crop: Crop = "none"

    def __post_init__(self) -> None:
        if not 0 < self.near < self.max_depth:
            raise ConfigError(
                f"depth from {self.near:g} to {self.max_depth:g} m.", next="near is above 0, and max_depth above near."
            )
        if self.crop not in get_args(Crop):
            raise ConfigError(f'no crop is called "{self.crop}".', next=nearest(self.crop, get_args(Crop)))

    @property
    def within(self) -> Range:
        """Which pixels count, and where predictions are clamped to."""
        return Range(self.near, self.max_depth, self.crop)

    @property
    def level(self) -> str:
        """Every pixel is answered for."""
        return DENSE

    @property
    def pushes(self) -> Mapping[str, Push]:
        """Every harm of `depth_pushes.py`; the first is the default."""
        return pushes(self.within)

    @property
    def ensemble(self) -> tuple[Member, ...]:
        """Auto-PGD on five harms; the worst image by RMSE is kept."""
        return tuple(Member(push, "apgd") for push in ENSEMBLE)

    @property
    def stop(self) -> bool:
        """An error in metres is never lost or won: the whole run counts."""
        return False

    @property
    def classes(self) -> int:
        """No logits."""
        return 0

    def aims(self, out: Out, rows: Rows, *, seed: int) -> Rows:
        """Nothing: `near` and `far` aim at the ends of the range."""
        return {}

    def modules(self) -> tuple[nn.Module, ...]:
        """The head."""
        return (self.head,)

    def passes(self, encoder: Encoder, precision: Precision, engine: Engine) -> See:
        """From pixels [b, 3, h, w] to `depth` [b, h, w] in metres."""
        return dense_see(encoder, self.head, self.windows, precision=precision, engine=engine)

    def read(self, encoder: Encoder, vector: Tensor) -> Out:
        """Refuses: one vector does not answer for every pixel.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("Depth was to be read from one vector.", next="It sees pixels: tasks.task.seer.")

    def score(self, out: Out, rows: Rows) -> Tensor:
        """RMSE of each image in metres, float32 [b]; 0 where no pixel counts."""
        return rmse(pixels(out["depth"], rows["depth"], self.within))

    def truth(self, pixels: Tensor, rows: Rows, see: See) -> Rows:
        """The measured depth is there already.

        Raises:
            DataError: it is not, is of another size than the pixels, or is not finite or negative somewhere.
        """
        asked = "Depth was to be compared with what was measured."
        if "depth" not in rows:
            raise DataError("The images have no depth.", asked=asked, next="holdfast ls layouts names those that do.")
        depth = rows["depth"]
        if depth.shape != (len(pixels), *pixels.shape[2:]):
            raise DataError(f"depth {list(depth.shape)} of pixels {list(pixels.shape)}.", asked=asked)
        if not bool((torch.isfinite(depth) & (depth >= 0)).all()):
            raise DataError("It is negative or not finite somewhere.", asked=asked, next="Write 0 for no measurement.")
        return rows

    def outcome(self, out: Out, rows: Rows) -> dict[str, Tensor]:
        """`rmse` float32 [b]; `errors`, `values` float64 [b, 10]; both median-scaled as `scaled`, `scaled_values`.

        `errors` are sums over pixels (`depth_errors.Terms`, the count first), `values` the image's own metrics
        (`depth_errors.QUANTITIES`, and last whether it has any). All are 0 for an image without a pixel that counts.
        """
        predicted, truth, within = out["depth"], rows["depth"], self.within
        read = pixels(predicted, truth, within)
        plain = sums(read)
        scaled = sums(pixels(median_scaled(predicted, truth, within), truth, within))
        return {
            "rmse": rmse(read),
            "errors": plain,
            "values": values(plain),
            "scaled": scaled,
            "scaled_values": values(scaled),
        }

    def measures(self) -> tuple[Measure, ...]:
        """RMSE, AbsRel, SqRel, log10, RMSElog, SILog and delta 1 to 3, each in four forms (`depth_errors.py`)."""
        return MEASURES

    def absent(self) -> dict[str, str]:
        """Nothing: where no pixel counts, each metric says so itself."""
        return {}
