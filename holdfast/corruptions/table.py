"""The corruptions by name, and `corrupt`, which applies one to a batch.

Source: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations (2019,
arXiv 1903.12261); the severity tables are those of the published sets, one per variant.

A corruption depends on its image, its severity and its random field alone. Each image's field is drawn from its own
key, so that no result depends on batch size, order, worker or device, and every encoder sees the same pixels; it holds
the draws in the order of the published code, so that they can be injected. Arithmetic comes in two modes: `reference`
follows the published definition in float64, `fast` differs from it by at most one of the 256 levels. A result is
truncated to uint8, as in the published sets, not rounded; `storage="jpeg85"` then sends it through the JPEG file that
ImageNet-C and Tiny-ImageNet-C are stored in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from holdfast.corruptions import (
    blur,
    colour,
    digital,
    elastic,
    frost,
    glass,
    motion,
    noise,
    snow,
    spatter,
    weather,
    zoom,
)
from holdfast.errors import ConfigError, PixelError, nearest
from holdfast.records import Corruption

Parameters = tuple[float, ...]
Draw = Callable[..., Tensor]

MODES = ("fast", "reference")
STORAGES = ("none", "jpeg85")
TEXTURES = ("drawn", "published")

# Side in pixels of the images of each published set.
SIDES = MappingProxyType({"imagenet224": 224, "cifar32": 32, "tiny64": 64, "inception299": 299})
_FAMILIES = ("noise", "blur", "weather", "digital", "extra")
# On a CPU about one 224-pixel image at a time, so that its float32 copies stay in the cache; elsewhere as many as pay.
_TILE_ON_CPU, _TILE_ELSEWHERE = 2**18, 2**26


@dataclass(frozen=True)
class Entry:
    """One corruption.

    Attributes:
        name: as in `records.Corruption.name`, and in the folders of the published sets.
        family: noise, blur, weather, digital; or extra for the four validation corruptions, which are never in the mCE.
        apply: (uint8 [b, h, w, 3], parameters, *, mode, and `field` where there is a draw, and what `resources` gives)
            -> levels [b, h, w, 3]: uint8, or floating and not yet clipped to 0..255 nor truncated.
        draw: (keys [b], (height, width), *, parameters, parts) -> the random field, row i from key i; None where there
            is nothing random.
        severities: parameters of severities 1 to 5, per variant.
        remark: (corruption, parameters, height, width) -> what a record must say, or an empty string.
        resources: (corruption) -> further keyword arguments of `apply`; raises `ExtraError` or `ConfigError` where
            something that must be installed or found is missing.
        moves: whether it displaces what is seen, so that a mask or depth no longer lies exactly on it.
    """

    name: str
    family: str
    apply: Callable[..., Tensor]
    draw: Draw | None
    severities: Mapping[str, tuple[Parameters, ...]]
    remark: Callable[[Corruption, Parameters, int, int], str] | None = None
    resources: Callable[[Corruption], Mapping[str, Any]] | None = None
    moves: bool = False

    @property
    def in_mce(self) -> bool:
        """One of the 15 corruptions of the mCE."""
        return self.family != "extra"


_ENTRIES: Mapping[str, Entry] = MappingProxyType(
    {
        e.name: e
        for e in (
            Entry("gaussian_noise", "noise", noise.gaussian_noise, noise.draw_normals, noise.GAUSSIAN_NOISE),
            Entry("shot_noise", "noise", noise.shot_noise, noise.draw_words, noise.SHOT_NOISE),
            Entry("impulse_noise", "noise", noise.impulse_noise, noise.draw_words, noise.IMPULSE_NOISE),
            Entry("defocus_blur", "blur", blur.defocus_blur, None, blur.DEFOCUS_BLUR),
            Entry("glass_blur", "blur", glass.glass_blur, glass.draw_copies, glass.GLASS_BLUR, moves=True),
            Entry("motion_blur", "blur", motion.motion_blur, motion.draw_angle, motion.MOTION_BLUR, moves=True),
            Entry("zoom_blur", "blur", zoom.zoom_blur, None, zoom.ZOOM_BLUR, moves=True),
            Entry("snow", "weather", snow.snow, snow.draw_snow, snow.SNOW),
            Entry(
                "frost",
                "weather",
                frost.frost,
                frost.draw_frost,
                frost.FROST,
                remark=frost.remark_on_frost,
                resources=frost.frost_resources,
            ),
            Entry("fog", "weather", weather.fog, weather.draw_fog, weather.FOG, remark=weather.remark_on_fog),
            Entry("brightness", "weather", colour.brightness, None, colour.BRIGHTNESS),
            Entry("contrast", "digital", colour.contrast, None, colour.CONTRAST),
            Entry(
                "elastic_transform",
                "digital",
                elastic.elastic_transform,
                elastic.draw_elastic,
                elastic.ELASTIC_TRANSFORM,
                moves=True,
            ),
            Entry("pixelate", "digital", digital.pixelate, None, digital.PIXELATE),
            Entry("jpeg_compression", "digital", digital.jpeg_compression, None, digital.JPEG_COMPRESSION),
            Entry("speckle_noise", "extra", noise.speckle_noise, noise.draw_normals, noise.SPECKLE_NOISE),
            Entry("gaussian_blur", "extra", blur.gaussian_blur, None, blur.GAUSSIAN_BLUR),
            Entry(
                "spatter",
                "extra",
                spatter.spatter,
                spatter.draw_spatter,
                spatter.SPATTER,
                resources=spatter.spatter_resources,
            ),
            Entry("saturate", "extra", colour.saturate, None, colour.SATURATE),
        )
    }
)


def names() -> tuple[str, ...]:
    """All corruptions, family by family, in the order of the published sets."""
    return tuple(_ENTRIES)


def moves(name: str) -> bool | None:
    """Whether a corruption displaces what is seen, so that a mask or depth no longer lies exactly on it.

    None where that is not known: of a folder's own corruptions.
    """
    return _ENTRIES[name].moves if name in _ENTRIES else None


def families() -> dict[str, tuple[str, ...]]:
    """The corruptions of each family: noise, blur, weather, digital (the 15 of the mCE), and the four extra ones."""
    return {f: tuple(e.name for e in _ENTRIES.values() if e.family == f) for f in _FAMILIES}


def variants() -> tuple[str, ...]:
    """The severity tables: which published set a corruption follows."""
    return tuple(SIDES)


def entry(name: str) -> Entry:
    """What is known about one corruption.

    Raises:
        ConfigError: there is none of that name.
    """
    _known("corruption", name, _ENTRIES)
    return _ENTRIES[name]


def check(corruption: Corruption) -> None:
    """Refuse what cannot be done, before a run rather than in it.

    Raises:
        ConfigError: an unknown name, severity, variant, mode, storage or textures; published textures that are not
            there, with what to type.
        ExtraError: OpenCV is needed and not installed.
    """
    if corruption.root:  # made by others: any name
        _severity(corruption)
        return
    found, _ = _looked_up(corruption)
    if found.resources is not None:
        found.resources(corruption)


def corrupt(images: Tensor, corruption: Corruption, keys: Tensor, *, field: Tensor | None = None) -> Tensor:
    """Corrupt a batch.

    Args:
        images: uint8 [b, h, w, 3], levels 0 to 255, on any device; not changed.
        corruption: which, how severe, by which table and seed, in which arithmetic (`mode`), stored how. Severity 0 is
            the identity, apart from the storage.
        keys: the row `key`, int64 [b]; image i depends on key i, never on its place.
        field: the random field of this batch, as `fields` gives it; None = drawn here.

    Returns:
        uint8 [b, h, w, 3] on the device of `images`.

    Raises:
        ConfigError: as `check`; keys or a field that do not belong to the images; a stage that is read from a folder.
        PixelError: images of another type or shape.
    """
    if corruption.root:
        raise ConfigError(
            f"{corruption.name} of {corruption.root} is read from there, not made.", next='Leave root out: root="".'
        )
    found, parameters = _looked_up(corruption)
    _check(images, keys, field)
    if parameters is None:
        return _stored(images.clone(), corruption)
    if found.draw is None and field is not None:
        raise ConfigError(
            f"{found.name} has nothing random.", asked="A field was given.", next="Leave `field` out, or pass None."
        )
    given = found.resources(corruption) if found.resources is not None else {}
    result = torch.empty_like(images, memory_format=torch.contiguous_format)
    for rows in _tiles(images):
        drawn: dict[str, Tensor] = {}
        if found.draw is not None:
            tile = _drawn(found, corruption, keys[rows], images.shape[1:3]) if field is None else field[rows]
            drawn["field"] = tile.to(images.device)
        levels = found.apply(images[rows], parameters, mode=corruption.mode, **drawn, **given)
        result[rows] = levels if levels.dtype == torch.uint8 else levels.clamp_(0, 255).to(torch.uint8)
    return _stored(result, corruption)


def fields(corruption: Corruption, keys: Tensor, height: int, width: int) -> Tensor | None:
    """The random field of a batch: the same for every encoder, whatever the images hold.

    Args:
        corruption: name, severity and seed key the field, together with the image's key.
        keys: the row `key`, int64 [b].
        height: of the images, in pixels.
        width: of the images, in pixels.

    Returns:
        [b, ...] on the device of `keys`, in the order in which the published code draws; None where nothing is random.
        float32, standard normal: [b, h, w, 3] (gaussian_noise, speckle_noise), [b, h, w] (spatter). float32, uniform in
        [0, 1): [b, n * n - 1] (fog, map of side n), [b, 1] (motion_blur: the angle), [b, 3] (frost: texture, row,
        column), [b, 6 + 2 h w] (elastic_transform). float32 [b, n + 1] (snow: n normals of the central block, then the
        angle). int16 words [b, h, w, 3] (shot_noise, impulse_noise). uint8 [b, passes, ...] (glass_blur). Each draw
        function says more.

    Raises:
        ConfigError: an unknown name, severity or variant.
    """
    found, parameters = _looked_up(corruption)
    if parameters is None or found.draw is None:
        return None
    return _drawn(found, corruption, keys, (height, width))


def made_for(height: int, width: int) -> str:
    """The variant whose published set has images of this size; empty where none has."""
    return next((name for name, side in SIDES.items() if (side, side) == (height, width)), "")


def notes(corruption: Corruption, height: int, width: int) -> tuple[str, ...]:
    """What a record must say about this corruption on images of this size.

    Args:
        corruption: name, severity, variant and textures.
        height: of the images, in pixels.
        width: of the images, in pixels.

    Returns:
        Sentences; empty where the images have the size that the variant was made for and nothing else is to be said.

    Raises:
        ConfigError: an unknown name, severity or variant.
    """
    if corruption.root:
        return ()
    found, parameters = _looked_up(corruption)
    side = SIDES[corruption.variant]
    if parameters is None:
        return ()
    sizes = f"{corruption.variant} was made for images of {side} x {side} px; these are {height} x {width} px."
    remark = found.remark(corruption, parameters, height, width) if found.remark else ""
    return tuple(f"{found.name}: {text}" for text in (sizes if (height, width) != (side, side) else "", remark) if text)


def _stored(images: Tensor, corruption: Corruption) -> Tensor:
    return digital.through_jpeg(images, quality=digital.STORED_QUALITY) if corruption.storage == "jpeg85" else images


def _drawn(found: Entry, corruption: Corruption, keys: Tensor, shape: Iterable[int]) -> Tensor:
    assert found.draw is not None
    parameters = found.severities[corruption.variant][corruption.severity - 1]
    parts = (corruption.seed, corruption.name, corruption.severity)
    return found.draw(keys, tuple(shape), parameters=parameters, parts=parts)


def _looked_up(corruption: Corruption) -> tuple[Entry, Parameters | None]:
    """The entry and the parameters of the severity; None for severity 0, the identity."""
    found = entry(corruption.name)
    _known("variant", corruption.variant, SIDES)
    _known("mode", corruption.mode, MODES)
    _known("storage", corruption.storage, STORAGES)
    _known("kind of texture", corruption.textures, TEXTURES)
    _severity(corruption)
    return found, found.severities[corruption.variant][corruption.severity - 1] if corruption.severity else None


def _severity(corruption: Corruption) -> None:
    if not isinstance(corruption.severity, int) or corruption.severity not in range(6):
        raise ConfigError(
            "There are severities 1 to 5, and 0 for the clean image.",
            asked=f"{corruption.name} at severity {corruption.severity!r}.",
            next="Write severity: 3.",
        )


def _known(what: str, word: str, known: Iterable[str]) -> None:
    if word not in (words := tuple(known)):
        raise ConfigError(f'There is no {what} "{word}".', next=nearest(str(word), words))


def _check(images: Tensor, keys: Tensor, field: Tensor | None) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
        raise PixelError(
            f"Found {images.dtype} {list(images.shape)}.",
            asked="corrupt takes uint8 [b, h, w, 3].",
            next="For floats in [0, 1] of [b, 3, h, w]: (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).",
        )
    for word, rows in (("keys", keys), ("field", field)):
        if word == "field" and rows is None:
            continue
        if not isinstance(rows, Tensor) or rows.ndim == 0 or rows.shape[0] != images.shape[0]:
            raise ConfigError(
                f"{word} has the shape {list(rows.shape)}." if isinstance(rows, Tensor) else f"{word} is {rows!r:.40}.",
                asked=f"corrupt takes one row of {word} for each of the {images.shape[0]} images.",
                next="holdfast.draws.keys(ids) makes the keys; fields(corruption, keys, height, width) the field.",
            )


def _tiles(images: Tensor) -> list[slice]:
    budget = _TILE_ON_CPU if images.device.type == "cpu" else _TILE_ELSEWHERE
    step = max(1, budget // (images.shape[1] * images.shape[2] * 3))
    return [slice(i, i + step) for i in range(0, images.shape[0], step)]
