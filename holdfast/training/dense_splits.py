"""The three sets of images of a dense head: what it is fitted on, what it is chosen by, and what it is measured on.

No image is in two of them. Published code chose its heads by the images that it then reported on (defect D1.9).
"""

from __future__ import annotations

from typing import NamedTuple

from holdfast import draws
from holdfast.configs import ProbeConfig
from holdfast.data.batches import Source, fingerprint
from holdfast.data.sources import Sides, images_for, open_source, splits
from holdfast.errors import ConfigError, DataError

TRAIN, VAL, TEST = "train", "val", "test"


class Part(NamedTuple):
    """Some images of a source.

    Attributes:
        source: it.
        indices: of them, ascending.
        name: what a person calls them: a split, or a split and how much of it.
    """

    source: Source
    indices: list[int]
    name: str

    @property
    def ids(self) -> list[str]:
        """Names of the images."""
        return [self.source.ids[i] for i in self.indices]

    @property
    def digest(self) -> str:
        """Of the names: that of the source where these are all of its images."""
        if len(self.indices) == len(self.source):
            return self.source.data.digest_of_images
        return fingerprint(self.ids, None)


class Parts(NamedTuple):
    """The three sets.

    Attributes:
        train: what a head is fitted on.
        val: what it is chosen by: the source's own split, or part of the training images, drawn by the seed.
        test: what it is measured on, once, at the end.
    """

    train: Part
    val: Part
    test: Part

    @property
    def digest(self) -> str:
        """Of all three."""
        return fingerprint([part.digest for part in self], None)

    def spoken(self) -> str:
        """`330 images of train, chosen by 37 of train that were held out, measured on 233 of test`."""
        train, val, test = (f"{len(part.indices):,} images of {part.name}" for part in self)
        return f"{train}, chosen by {val}, measured on {test}"


def parts_for(config: ProbeConfig, sides: Sides) -> Parts:
    """The images of a dense probe; opened, and none of them read.

    Where there is no split test, and none was named, val is what is measured (ADE20K, Cityscapes, VOC). Else val
    chooses the head. Where it is not free to, `val_share` of the training images does.

    Args:
        config: `data`, `split`, `test_split`, `val_share`, `seed` and whatever chooses images.
        sides: that the encoder expects.

    Raises:
        ConfigError: a share that leaves nothing on either side.
        DataError: a split that is not there, two that share images, images without the masks or depth asked for.
    """
    test_name = _test_split(config)
    train = open_source(images_for(config, sides, split=config.split, default=TRAIN))
    check_truth(train, config)
    test = open_source(images_for(config, sides, split=test_name, default=TEST))
    _check_alike(train, test)
    _check_apart(train, test, f"--test-split {test_name}")
    fitted, chosen = _choosing(config, sides, train, test)
    return Parts(fitted, chosen, Part(test, list(range(len(test))), test.data.split))


def check_truth(source: Source, config: ProbeConfig) -> None:
    """Refuse images without the truth that the task asks for.

    Raises:
        DataError: no masks, or no depth.
    """
    wanted = "masks" if config.task == "segmentation" else "depth"
    if source.parts if wanted == "masks" else source.max_depth > 0:
        return
    where = source.data.root or source.data.source
    raise DataError(
        f"{where} was read as {source.data.source}, which has no {wanted}.",
        asked=f"A head for {config.task} was to be fitted.",
        next=f"holdfast ls layouts names sources with {wanted}; say which one it is: --data masks_folder:{where}."
        if wanted == "masks"
        else f"holdfast ls layouts names sources with depth; say which one it is: --data depth_folder:{where}.",
    )


def _test_split(config: ProbeConfig) -> str:
    there, wanted = splits(config.data), config.test_split
    if wanted in there:
        return wanted
    if wanted == TEST and VAL in there and config.split != VAL:
        return VAL
    others = [name for name in there if name not in (config.split or TRAIN, "all")]
    raise DataError(
        f"{config.data} has {'the splits ' + ', '.join(there) if there else 'no split'}.",
        asked=f'The head was to be measured on the split "{wanted}".',
        next=f"Give --test-split {others[0]}." if others else "Divide the images into folders train and test.",
    )


def _choosing(config: ProbeConfig, sides: Sides, train: Source, test: Source) -> tuple[Part, Part]:
    """What is fitted on, and what chooses."""
    everything = list(range(len(train)))
    if VAL in splits(config.data) and VAL not in (train.data.split, test.data.split):
        own = open_source(images_for(config, sides, split=VAL, default=VAL))
        if not {*own.ids} & {*train.ids, *test.ids}:
            _check_alike(train, own)
            return Part(train, everything, train.data.split), Part(own, list(range(len(own))), VAL)
    held = round(config.val_share * len(train))
    if not 0 < held < len(train):
        raise ConfigError(
            f"val_share {config.val_share:g} of {len(train)} images holds {held} out, by which a head is chosen.",
            next="Give a share between 0 and 1 (--val-share 0.2), or more images.",
        )
    chosen = draws.subset(len(train), held, config.seed, "validation")
    rest = sorted({*everything} - {*chosen})
    return Part(train, rest, train.data.split), Part(train, chosen, f"{train.data.split} that were held out")


def _check_alike(train: Source, other: Source) -> None:
    """See that what is answered for is the same in both."""
    if train.parts != other.parts:
        raise DataError(
            f"{train.data.split} has {len(train.parts)} classes ({', '.join(train.parts[:4])}...), "
            f"{other.data.split} has {len(other.parts)} ({', '.join(other.parts[:4])}...).",
            next="Name the classes of both in one classes.txt.",
        )
    if train.max_depth != other.max_depth:
        raise DataError(
            f"{train.data.split} is measured up to {train.max_depth:g} m, {other.data.split} to {other.max_depth:g} m.",
            next="Give both the same max_depth.",
        )


def _check_apart(train: Source, test: Source, flag: str) -> None:
    """See that the head is not measured on what it is fitted on, not even in part."""
    shared = {*train.ids} & {*test.ids}
    if shared:
        raise DataError(
            f"{len(shared):,} of {len(test):,} images of {test.data.split} are also in {train.data.split} "
            f"({min(shared)}...).",
            asked=f"{flag}: a head is not measured on images that it was fitted on.",
            next="Name two splits without an image in common: --split train --test-split val.",
        )
