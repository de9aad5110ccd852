"""Records: hashes that stay, fractions, messages that name the nearest word, and no NaN."""

from __future__ import annotations

import math

import msgspec
import pytest

from holdfast import codec, configs
from holdfast.codec import build, canonical, number, read_json
from holdfast.errors import ConfigError
from holdfast.records import Attack, Cell, Corruption, Data, Judge, Metric, Model
from holdfast.train_config import TrainConfig


def cell(**fields: object) -> Cell:
    parts = {
        "data": Data(source="scenes"),
        "encoder": Model(spec="resnet18"),
        "judge": Judge(task="embedding", head="bank"),
        "stages": (Corruption(name="fog", severity=3, variant="cifar32"), Attack(eps=8 / 255)),
    }
    return Cell(**{**parts, **fields})


def test_the_hash_of_a_cell_is_what_it_was() -> None:
    """Yesterday's records must be found again: a change here makes every finished run start anew."""
    assert cell().id == "cc5e64c624ec"


def test_equal_records_have_equal_hashes_and_others_have_not() -> None:
    assert cell().digest() == cell().digest() == read_json(Cell, canonical(cell())).digest()
    changed = [
        cell(stages=()),
        cell(data=Data(source="scenes", limit=1)),
        cell(encoder=Model(spec="resnet18", name="b")),
        cell(stages=(Attack(eps=8 / 255, steps=21),)),
    ]
    assert len({c.digest() for c in [cell(), *changed]}) == 5


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.5/255", 0.5 / 255), ("0.03", 0.03), ("1e-3", 1e-3), (" 4 / 255 ", 4 / 255)],
)
def test_numbers_as_a_person_types_them(text: str, value: float) -> None:
    assert number(text) == value
    assert build(TrainConfig, {"eps": text}).eps == value


@pytest.mark.parametrize("text", ["eight", "8/0", "8/", "/255", "", "nan", "inf"])
def test_no_number(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a number"):
        number(text)


def test_fractions_are_read_where_a_number_belongs_and_nowhere_else() -> None:
    found = build(
        configs.BenchConfig,
        {"eps": ["8/255", 0.1], "data": "8/255", "attacks": [{"eps": "2/255", "alpha": "1/255", "stage": "attack"}]},
    )
    assert found.eps == (8 / 255, 0.1) and found.data == "8/255"
    assert (found.attacks[0].eps, found.attacks[0].alpha) == (2 / 255, 1 / 255)
    stages = build(Cell, msgspec.to_builtins(cell()) | {"stages": [{"stage": "attack", "eps": "1/255"}]}).stages
    assert stages == (Attack(eps=1 / 255),)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (configs.BenchConfig, {"encoder": []}, r'unknown field "encoder".*Perhaps you meant "encoders"'),
        (configs.BenchConfig, {"attacks": [{"stps": 1}]}, r'"stps" at \$.attacks\[0\].*Perhaps you meant "steps"'),
        (TrainConfig, {"epochs": "many"}, r"Expected `int`.*\$.epochs"),
        (TrainConfig, {"eps": "big"}, r"Expected `float`.*\$.eps"),
        (TrainConfig, {"norm": "l3"}, r"Invalid enum value 'l3'"),
    ],
)
def test_what_does_not_fit_is_named(kind: type[codec.Record], fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(kind, fields, origin="a.yaml")


def test_yaml_round_trip() -> None:
    config = configs.BenchConfig(encoders=("a", "b"), eps=(4 / 255,), attacks=(Attack(eps=0.1),), mean=(0.5, 0.5, 0.5))
    assert build(configs.BenchConfig, msgspec.yaml.decode(codec.to_yaml(config))) == config


def test_nan_and_silence_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        Metric(name="accuracy", value=math.nan)
    with pytest.raises(ValueError, match="neither a value nor a reason"):
        Metric(name="accuracy")
    assert Metric(name="accuracy", reason="no labels").value is None


def test_every_field_of_every_config_is_explained() -> None:
    kinds = (TrainConfig, configs.ProbeConfig, configs.AttackConfig, configs.BenchConfig, configs.RunConfig)
    for kind in kinds:
        told = "\n".join(owner.__doc__ or "" for owner in kind.__mro__)
        for field in kind.__struct_fields__:
            assert f"        {field}: " in told, f"{kind.__name__}.{field}"
