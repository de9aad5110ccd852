"""Where an encoder looks, and how far that moves: Grad-CAM (Selvaraju et al., ICCV 2017) of clean and changed images.

The map is relu(sum over channels of weight x activation), the weight the mean gradient of a target over positions. The
activations are the last ones that still have positions: a CNN's last map before pooling, a ViT's last block at the
input of its attention (class token and registers dropped), a Swin's last block at its second LayerNorm.

The target is fixed by the clean image: without that, a map would move because another class is asked about. An encoder
without a head is asked for its clean embedding: the inner product with it, as a constant of unit length. (The cosine
would not do: its gradient is zero at the clean image, where it is largest.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from holdfast.attacks.harm import Out, Push, Rows, See
from holdfast.errors import ConfigError, DataError, PixelError, TrustError, nearest
from holdfast.models.encoder import Encoder
from holdfast.models.features import CamLayer, Features, reader
from holdfast.tasks.similarity import WINDOW, psnr, ssim
from holdfast.tasks.task import PIXELS, Measure, Member, still

Target = Literal["predicted", "true", "similarity"]


class Look(NamedTuple):
    """Grad-CAM of b images.

    Attributes:
        maps: [b, gh, gw] in [0, 1].
        vector: what the target was computed from, [b, d].
    """

    maps: Tensor
    vector: Tensor


def grad_cam(encoder: Encoder, pixels: Tensor, level: str, value: Callable[[Tensor], Tensor]) -> Look:
    """Grad-CAM of any function of a level's vector.

    The graph begins at the activations: it costs the memory of a pass without gradient, and works on frozen weights
    and under `no_grad`.

    Args:
        encoder: in evaluation mode and frozen, as in `tasks.task.still`.
        pixels: float [b, 3, h, w] in [0, 1].
        level: as `Encoder.vector` takes it.
        value: the vector [b, d] -> [b], number i from row i alone; its gradient is taken.

    Returns:
        Detached tensors. A map is divided by its largest value; one without a positive value is zero throughout.

    Raises:
        ConfigError: called under `inference_mode`, or an encoder whose activations have no positions.
        TrustError: the map is not finite.
    """
    if torch.is_inference_mode_enabled():
        raise ConfigError("Grad-CAM needs gradients, and inference_mode has none.", next="Call it under torch.no_grad.")
    with torch.enable_grad(), torch.autocast(pixels.device.type, enabled=False):
        trace = _traced(encoder, pixels.detach(), level)
        (gradient,) = torch.autograd.grad(value(trace.vector).sum(), trace.leaf)
    with torch.no_grad():
        weight = trace.arranged(gradient).mean((2, 3), keepdim=True)
        maps = (weight * trace.arranged(trace.leaf)).sum(1).relu()
        largest = maps.amax((1, 2), keepdim=True)
        if not bool(torch.isfinite(largest).all()):
            raise TrustError("A Grad-CAM map is not finite.", next="Look for overflow in the encoder or in its head.")
        return Look(torch.where(largest > 0, maps / largest, 0.0), trace.vector.detach())


def cam_drift(first: Tensor, second: Tensor) -> Tensor:
    """1 - cosine similarity of two non-negative maps of the same grid.

    Args:
        first: [b, gh, gw], not negative.
        second: as `first`.

    Returns:
        [b] in [0, 1]; exactly 0 for identical maps, 0 where both are zero, 1 where one is.
    """
    one, other = (normalize(maps.double().flatten(1), dim=1) for maps in (first, second))
    lonely = (first.flatten(1) > 0).any(1) != (second.flatten(1) > 0).any(1)
    half = (one - other).square().sum(1) / 2  # = 1 - cosine, without its rounding
    return torch.where(lonely, 1.0, half.clamp_max(1)).float()


def upsampled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps at the size of their images, bilinear: [b, gh, gw] -> [b, h, w], still in [0, 1]."""
    return interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


@dataclass(frozen=True)
class Saliency:
    """Drift of Grad-CAM maps, with SSIM and PSNR of the pixels. Nothing here is attacked: there are no harms.

    Attributes:
        encoder: whose maps are drawn; `read` refuses another.
        head: maps the vector of `head_level` [b, d] to logits [b, k]; None = the encoder's own head, which the target
            `similarity` leaves alone: its classes need not be those of the images.
        target: what the maps explain: the logit of the class `predicted` on the clean image, that of the `true` class,
            or the `similarity` to the clean embedding, which needs no head.
        head_level: features that the head, or the similarity, reads.
        labelled: whether the images have labels.
        size: shorter side of the images in px; 0 = that of the encoder's geometry.

    Raises:
        ConfigError: an unknown target, or one that lacks its head or its labels.
    """

    encoder: Encoder
    head: nn.Module | None = None
    target: Target = "predicted"
    head_level: str = "pooled"
    labelled: bool = True
    size: int = 0

    def __post_init__(self) -> None:
        if self.target not in get_args(Target):
            raise ConfigError(f'Saliency knows no target "{self.target}".', next=nearest(self.target, get_args(Target)))
        if self.target != "similarity" and not self._classifies:
            raise ConfigError(
                f'{self.encoder.name} has no head on "{self.head_level}".',
                asked=f'The target "{self.target}" is a logit.',
                next='Fit a head, or take the target "similarity".',
            )
        if self.target == "true" and not self.labelled:
            raise ConfigError('The target "true" needs labels.', next='Take the target "predicted".')

    @property
    def level(self) -> str:
        """The pixels themselves: maps need their own pass."""
        return PIXELS

    @property
    def pushes(self) -> Mapping[str, Push]:
        """None: a map is looked at, not attacked."""
        return {}

    @property
    def ensemble(self) -> tuple[Member, ...]:
        """No attacks."""
        return ()

    @property
    def stop(self) -> bool:
        """A drift is never lost or won."""
        return False

    @property
    def classes(self) -> int:
        """No logits."""
        return 0

    def aims(self, out: Out, rows: Rows, *, seed: int) -> Rows:
        """Nothing: saliency is not attacked."""
        return {}

    def modules(self) -> tuple[nn.Module, ...]:
        """The fitted head; an own head belongs to the encoder."""
        return () if self.head is None else (self.head,)

    def read(self, encoder: Encoder, vector: Tensor) -> Out:
        """`pixels` [b, 3, h, w]: at this level the vector is the image.

        Raises:
            TrustError: the encoder is another one than that of the maps.
        """
        if encoder is not self.encoder:
            raise TrustError(
                f"Saliency of {self.encoder.name} was asked to read {encoder.name}.",
                next="Make one Saliency per encoder.",
            )
        return {"pixels": vector}

    def score(self, out: Out, rows: Rows) -> Tensor:
        """The drift of the maps."""
        return cam_drift(rows["clean_map"], self._look(out["pixels"], rows).maps)

    def truth(self, pixels: Tensor, rows: Rows, see: See) -> Rows:
        """Adds `clean_pixels`, `clean_map` [b, gh, gw], `clean_direction` [b, d] and with a head `clean_class` [b].

        The class is the predicted one; the direction is the embedding, of unit length.

        Raises:
            DataError: there should be labels, and there are none.
        """
        if self.labelled and self._classifies and "label" not in rows:
            raise DataError("The images have no labels.", asked="Accuracy needs labels.", next="Say labelled=False.")
        clean = see(pixels)["pixels"]
        maps, vector = self._look(clean, rows)
        found = {"clean_pixels": clean, "clean_map": maps, "clean_direction": normalize(vector, dim=1)}
        if self._classifies:
            found["clean_class"] = self._logits(vector).argmax(1)
        return {**rows, **found}

    def outcome(self, out: Out, rows: Rows) -> dict[str, Tensor]:
        """`cam_drift`, `ssim`, `psnr` (dB) against the clean image; with a head and labels what is predicted.

        That is `prediction` and `clean_prediction`, `label`, `correct` and `clean_correct`. What `absent` names is left
        out.

        Raises:
            PixelError: the images are too small for a measure, and `size` did not say so.
        """
        pixels, clean = out["pixels"], rows["clean_pixels"]
        maps, vector = self._look(pixels, rows)
        found = {"psnr": psnr(clean, pixels)}
        if min(pixels.shape[2:]) >= WINDOW or "ssim" not in self.absent():
            found["ssim"] = ssim(clean, pixels)
        if maps[0].numel() > 1:
            found["cam_drift"] = cam_drift(rows["clean_map"], maps)
        elif "cam_drift" not in self.absent():
            h, w = pixels.shape[2:]
            raise PixelError(
                f"the last map of {self.encoder.name} is a single position for images of {h} x {w} px.",
                asked="Drift compares maps position by position.",
                next=f"Say size={min(h, w)} to leave it out, or enlarge the images.",
            )
        if self._classifies:
            found |= {"prediction": self._logits(vector).argmax(1), "clean_prediction": rows["clean_class"]}
        if self._classifies and self.labelled:
            label = rows["label"]
            right = {"correct": found["prediction"] == label, "clean_correct": rows["clean_class"] == label}
            found |= {"label": label, **right}
        return found

    def measures(self) -> tuple[Measure, ...]:
        """Mean drift of the maps, mean SSIM, mean PSNR, and accuracy where there are a head and labels."""
        known = (
            Measure("cam_drift", "cam_drift", higher_is_better=False, unit="1 - cosine"),
            Measure("ssim", "ssim", higher_is_better=True, unit="SSIM"),
            Measure("psnr", "psnr", higher_is_better=True, unit="dB"),
            Measure("accuracy", "correct", higher_is_better=True),
        )
        absent = self.absent()
        return tuple(measure for measure in known if measure.name not in absent)

    def absent(self) -> dict[str, str]:
        """Drift and SSIM of images that are too small for them; accuracy without a head or labels."""
        found, side = {}, self._side
        if side and self._grid == (1, 1):
            found["cam_drift"] = f"the last map of {self.encoder.name} is a single position for images of {side} px"
        if 0 < side < WINDOW:
            found["ssim"] = f"images of {side} px are smaller than the window of {WINDOW} px"
        if not self._classifies:
            found["accuracy"] = "there is no classification head"
        elif not self.labelled:
            found["accuracy"] = "the images have no labels"
        return found

    def maps(self, pixels: Tensor, rows: Rows) -> Tensor:
        """The Grad-CAM maps of images, for pictures.

        Args:
            pixels: float [b, 3, h, w] in [0, 1].
            rows: with the truth, whose target is explained; without it the images are taken for the clean ones.

        Returns:
            [b, gh, gw] in [0, 1]: each divided by its own maximum; one without a positive value is zero.

        Raises:
            ConfigError: called under `inference_mode`, or an encoder whose activations have no positions.
            TrustError: a map is not finite.
        """
        return self._look(pixels, rows).maps

    def _look(self, pixels: Tensor, rows: Rows) -> Look:
        def value(vector: Tensor) -> Tensor:
            if self.target == "similarity":
                return (vector * rows.get("clean_direction", normalize(vector.detach(), dim=1))).sum(1)
            logits = self._logits(vector)
            at = rows["label"] if self.target == "true" else rows.get("clean_class", logits.argmax(1))
            return logits.gather(1, at[:, None]).squeeze(1)

        with still(self.encoder, self):
            return grad_cam(self.encoder, pixels, self.head_level, value)

    def _logits(self, vector: Tensor) -> Tensor:
        if self.head is None:
            return self.encoder.classify(Features(vector, {}, {}))
        with torch.autocast(vector.device.type, enabled=False):
            logits: Tensor = self.head(vector)
        return logits

    @property
    def _classifies(self) -> bool:
        own = self.encoder.head is not None and self.head_level == "pooled"
        return self.head is not None or (own and self.target != "similarity")

    @property
    def _side(self) -> int:
        return self.size or self.encoder.geometry.size

    @cached_property
    def _grid(self) -> tuple[int, ...]:
        """Positions of the maps of square images, tried once on a black one."""
        black = torch.zeros(1, 3, self._side, self._side, device=self.encoder.mean.device)
        with still(self.encoder, self):
            return tuple(grad_cam(self.encoder, black, self.head_level, lambda vector: vector.sum(1)).maps.shape[1:])


class _Trace(NamedTuple):
    """Activations, the leaf of a graph, in their layer's own layout; the vector [b, d] at its end; tokens: the grid."""

    leaf: Tensor
    vector: Tensor
    prefix: int | None = None
    grid: tuple[int, int] = (0, 0)

    def arranged(self, seen: Tensor) -> Tensor:
        """What has the layout of the leaf as [b, c, gh, gw]."""
        return seen if self.prefix is None else seen[:, self.prefix :].mT.reshape(len(seen), -1, *self.grid)


def _traced(encoder: Encoder, pixels: Tensor, level: str) -> _Trace:
    found = reader(encoder.trunk)
    found.check((level,))
    layer = found.cam_layer(level)
    if layer is None:
        leaf = _map(encoder, pixels, "patch" if level == "pooled" else level).detach().requires_grad_()
        return _Trace(leaf, found.onwards(leaf.clone(), level))
    with _watching(layer) as kept:
        if layer.prefix is None:
            vector, grid = encoder.vector(pixels, level), (0, 0)
        else:
            vector, grid = _tokens(encoder, pixels, level)
    if not kept or (layer.prefix is not None and kept[-1].shape[1:-1] != (layer.prefix + grid[0] * grid[1],)):
        raise ConfigError(
            f"{type(layer.module).__name__} of {encoder.name} does not see the tokens that its features promise.",
            next="Grad-CAM cannot read this encoder.",
        )
    return _Trace(kept[-1], vector, layer.prefix, grid)


def _map(encoder: Encoder, pixels: Tensor, level: str) -> Tensor:
    try:
        return encoder(pixels, (level,)).maps[level]  # type: ignore[no-any-return]
    except ConfigError as error:
        raise ConfigError(
            error.found,
            asked="Grad-CAM reads the last map before pooling.",
            next="Wrap the encoder so that it gives [b, c, h, w], or read a level that has positions.",
        ) from None


def _tokens(encoder: Encoder, pixels: Tensor, level: str) -> tuple[Tensor, tuple[int, int]]:
    """The vector of a level as `Encoder.vector` gives it, and the grid of the patches."""
    seen = encoder(pixels, tuple({level, "patch"} - {"pooled"}))
    h, w = seen.maps["patch"].shape[2:]
    if level in seen.maps:
        return seen.maps[level].mean((2, 3)), (h, w)
    return seen.pooled if level == "pooled" else seen.prefix[level].flatten(1), (h, w)


@contextlib.contextmanager
def _watching(layer: CamLayer) -> Iterator[list[Tensor]]:
    """Inside the block, what passes the layer becomes the leaf of a new graph, and is kept in the list."""
    kept: list[Tensor] = []

    def begin(seen: Tensor) -> Tensor:
        kept.append(seen.detach().requires_grad_())
        return kept[-1].clone()  # a later operation in place must not touch the leaf

    if layer.side == "input":
        handle = layer.module.register_forward_pre_hook(lambda _, given: (begin(given[0]), *given[1:]))
    else:
        handle = layer.module.register_forward_hook(lambda _, given, seen: begin(seen))
    try:
        yield kept
    finally:
        handle.remove()
