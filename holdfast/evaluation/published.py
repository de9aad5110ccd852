"""Numbers from papers, each with its protocol and its source. None stands beside ours without them."""

from __future__ import annotations

import functools
from importlib import resources
from typing import NamedTuple

from holdfast.codec import Record, read_json

FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
"""The families of the published sets, in their order; extra = the four validation corruptions."""

MCE_CORRUPTIONS = tuple(name for family, members in FAMILIES.items() if family != "extra" for name in members)
"""The fifteen of the mCE. The other four are validation corruptions and never in it."""

CORRUPTIONS = MCE_CORRUPTIONS + FAMILIES["extra"]
"""All nineteen."""

Rates = tuple[float, float, float, float, float]

ALEXNET_SOURCE = (
    "AlexNet's top-1 errors on ImageNet-C, severities 1 to 5: README of hendrycks/robustness, October 2019 (removed in "
    "May 2020); Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261"
)
ALEXNET_CLEAN_ERROR = 0.435
ALEXNET_ERRORS: dict[str, Rates] = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.94870, 0.98720, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.58430, 0.70048, 0.82108, 0.89750, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.91870, 0.94952),
    "frost": (0.61390, 0.79734, 0.88790, 0.89942, 0.93430),
    "fog": (0.67474, 0.76050, 0.84378, 0.87260, 0.94500),
    "brightness": (0.45140, 0.48502, 0.54048, 0.62166, 0.72440),
    "contrast": (0.64548, 0.76150, 0.88874, 0.97760, 0.99270),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.54620, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
    "speckle_noise": (0.66192, 0.74440, 0.90246, 0.94548, 0.97268),
    "gaussian_blur": (0.54732, 0.70444, 0.82574, 0.89864, 0.95940),
    "spatter": (0.47196, 0.62194, 0.75052, 0.84132, 0.90182),
    "saturate": (0.59342, 0.65514, 0.51174, 0.70834, 0.82260),
}


class Published(NamedTuple):
    """A number from a paper or a leaderboard.

    Attributes:
        model: as its source calls it.
        metric: mce, accuracy or robust_accuracy.
        value: a fraction; mCE with AlexNet = 1.
        data: source of the images, as in `records.Data`.
        protocol: how it was measured.
        source: where it stands.
    """

    model: str
    metric: str
    value: float
    data: str
    protocol: str
    source: str


class Study(NamedTuple):
    """One model of a study that published the error of every corruption and severity.

    Attributes:
        name: of the method, as its authors call it.
        architecture: of the encoder.
        epochs: of pre-training; None = not known.
        weights: where the study had them from.
        clean: error on clean images, a fraction, as the study quotes it.
        errors: at severities 1 to 5, fractions, by corruption.
        protocol: how they were measured.
        comparable: whether these numbers may rank beside ours.
        defects: what contaminates them, in sentences.
        source: where they stand.
    """

    name: str
    architecture: str
    epochs: int | None
    weights: str
    clean: float
    errors: dict[str, Rates]
    protocol: str
    comparable: bool
    defects: tuple[str, ...]
    source: str

    @property
    def title(self) -> str:
        """Method and architecture, different for every model."""
        return f"{self.name} ({self.architecture})"


class _Model(Record, frozen=True, kw_only=True):
    """A model as `study.json` has it; errors in per cent, as they were published."""

    name: str
    architecture: str
    epochs: int | None
    weights: str
    clean_error: float
    notes: tuple[str, ...]
    errors: dict[str, Rates]


class _File(Record, frozen=True, kw_only=True):
    """`study.json`. No aggregate is in it: each is computed from the errors."""

    source: str
    protocol: str
    comparable: bool
    defects: tuple[str, ...]
    models: tuple[_Model, ...]


_MCE = "ImageNet-C as stored (JPEG quality 85), 50,000 images x 15 corruptions x 5 severities, over AlexNet's errors"
_README = "README of hendrycks/robustness"
_BENCH = "RobustBench, model_info"


def _aa(data: str, norm: str, eps: str, rows: dict[str, tuple[float, float]]) -> list[Published]:
    images = "10,000 test images" if data == "cifar10" else "5,000 validation images"
    protocol = f"AutoAttack, {norm} {eps}, {images}"
    return [
        Published(model, metric, value / 100, data, protocol if metric == "robust_accuracy" else images, _BENCH)
        for model, pair in rows.items()
        for metric, value in zip(("accuracy", "robust_accuracy"), pair)
    ]


PUBLISHED: tuple[Published, ...] = (
    *(
        Published(model, "mce", value / 100, "imagenet", _MCE, _README)
        for model, value in {
            "ResNet-50": 76.7,
            "ResNet-50 + Patch Uniform": 74.3,
            "ResNet-50 + Stylized ImageNet": 69.3,
            "ResNet-50 + AugMix": 65.3,
            "ResNet-50 + ANT 3x3": 63.0,
            "ResNeXt-101": 62.2,
            "Assemble ResNet-50": 56.5,
            "ResNet-50 + DeepAugment + AugMix": 53.6,
        }.items()
    ),
    *_aa(
        "cifar10",
        "Linf",
        "8/255",
        {
            "Standard (WRN-28-10, undefended)": (94.78, 0.0),
            "Wong2020Fast": (83.34, 43.21),
            "Engstrom2019Robustness (ResNet-50)": (87.03, 49.25),
            "Addepalli2022Efficient_RN18": (85.71, 52.48),
            "Sehwag2021Proxy_R18": (84.59, 55.54),
            "Rade2021Helper_R18_ddpm": (86.86, 57.09),
            "Carmon2019Unlabeled (WRN-28-10)": (89.69, 59.53),
        },
    ),
    *_aa("cifar10", "L2", "0.5", {"Rice2020Overfitting (PreActResNet-18)": (88.67, 67.68)}),
    *_aa(
        "imagenet",
        "Linf",
        "4/255",
        {
            "Salman2020Do_R18": (52.92, 25.32),
            "Singh2023 (ViT-S + ConvStem)": (72.56, 48.08),
            "XCiT-S12": (72.34, 41.78),
        },
    ),
)


def published(metric: str, data: str) -> list[Published]:
    """The published numbers of that metric (mce, accuracy, robust_accuracy) on those images; protocols may differ."""
    return [number for number in PUBLISHED if number.metric == metric and number.data == data]


@functools.cache
def published_corruption_studies() -> tuple[Study, ...]:
    """Self-supervised encoders and a supervised one under 19 corruptions, as published (`study.json`, read once)."""
    file = read_json(_File, resources.files("holdfast.evaluation").joinpath("study.json").read_bytes())
    return tuple(
        Study(
            name=model.name,
            architecture=model.architecture,
            epochs=model.epochs,
            weights=model.weights,
            clean=_fraction(model.clean_error),
            errors={name: _fractions(rates) for name, rates in model.errors.items()},
            protocol=file.protocol,
            comparable=file.comparable,
            defects=file.defects + model.notes,
            source=file.source,
        )
        for model in file.models
    )


def family(corruption: str) -> str:
    """noise, blur, weather, digital, extra (the validation corruptions); or other."""
    return next((name for name, members in FAMILIES.items() if corruption in members), "other")


def _fractions(rates: Rates) -> Rates:
    one, two, three, four, five = (_fraction(rate) for rate in rates)
    return one, two, three, four, five


def _fraction(percent: float) -> float:
    """Rounded, so that 51.3 % is 0.513 and not 0.5129999999999999."""
    return round(percent / 100, 6)
