"""How records are written and read: canonical JSON, digests, YAML, and messages that name the field that does not fit.

A record's `digest` is the SHA-256 of its canonical JSON (sorted keys, shortest floats), so that equal records have
equal names on every machine. No torch here.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from holdfast.errors import ConfigError, nearest

R = TypeVar("R", bound="Record")


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every config and result: frozen, keyword-only, refuses unknown fields."""

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(canonical(self)).hexdigest()


def canonical(value: Any) -> bytes:
    """Canonical JSON of a record or of builtins: sorted keys, shortest floats."""
    return msgspec.json.encode(value, order="deterministic")


def pretty(record: Record) -> str:
    """Indented JSON, keys sorted."""
    return msgspec.json.format(canonical(record), indent=1).decode()


def to_yaml(record: Record) -> str:
    """The record as YAML, every field written out."""
    return msgspec.yaml.encode(record).decode()


def read_json(kind: type[R], text: bytes) -> R:
    """A record from its JSON; `ConfigError` names the field that does not fit."""
    return build(kind, msgspec.json.decode(text))


def build(kind: type[R], fields: Mapping[str, Any], *, origin: str = "") -> R:
    """Make a record from plain values, as YAML, JSON and keyword arguments give them.

    A string such as `"8/255"` is read as a number where the field is one.

    Args:
        kind: the struct.
        fields: names and values; nested mappings and lists for nested records.
        origin: where they come from, for the message (`demo.yaml`).

    Returns:
        The record.

    Raises:
        ConfigError: a field is unknown (the nearest is named), or a value does not fit.
    """
    try:
        return msgspec.convert(_numbers(kind, fields), kind, str_keys=False)
    except msgspec.ValidationError as error:
        raise _explained(kind, error, origin) from None


def number(text: str) -> float:
    """Read what a person types for a number: `8/255`, `0.03`, `1e-3`.

    Raises:
        ConfigError: it is no number.
    """
    top, slash, bottom = text.partition("/")
    try:
        value = float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f'"{text}" is not a number.', next='Write 0.03 or "8/255".')
    return value


_NUMBER = re.compile(r"^\s*[-+]?[\d.]+(e[-+]?\d+)?\s*(/\s*[\d.]+\s*)?$", re.IGNORECASE)


_type_info = functools.cache(msgspec.inspect.type_info)  # 15 ms for the record of a cell, and there are thousands


def _numbers(kind: Any, value: Any) -> Any:
    """`value` with fractions in strings read as numbers, wherever `kind` has a float."""
    info = kind if isinstance(kind, msgspec.inspect.Type) else _type_info(kind)
    if isinstance(info, msgspec.inspect.UnionType):
        fit = [t for t in info.types if not isinstance(t, msgspec.inspect.NoneType)]
        structs = [t for t in fit if isinstance(t, msgspec.inspect.StructType)]
        if isinstance(value, Mapping):
            tags = {t.tag: t for t in structs}
            chosen = tags.get(value.get("stage"), structs[0] if len(structs) == 1 else None)
            return _numbers(chosen, value) if chosen else value
        return _numbers(fit[0], value) if len(fit) == 1 else value
    if isinstance(info, msgspec.inspect.FloatType):
        return number(value) if isinstance(value, str) and _NUMBER.match(value) else value
    if isinstance(info, msgspec.inspect.StructType) and isinstance(value, Mapping):
        types = {f.encode_name: f.type for f in info.fields}
        return {k: _numbers(types[k], v) if k in types else v for k, v in value.items()}
    if isinstance(info, msgspec.inspect.VarTupleType) and isinstance(value, list | tuple):
        return [_numbers(info.item_type, v) for v in value]
    if isinstance(info, msgspec.inspect.TupleType) and isinstance(value, list | tuple):
        return [_numbers(t, v) for t, v in zip(info.item_types, value, strict=False)]
    return value


def _explained(kind: type[Record], error: msgspec.ValidationError, origin: str) -> ConfigError:
    text, where = str(error), f"{origin}: " if origin else ""
    unknown = re.search(r"unknown field `([^`]+)`(?: - at `([^`]+)`)?", text)
    if unknown:
        place = f" at {unknown[2]}" if unknown[2] else ""
        hint = nearest(unknown[1], _field_names(kind, unknown[2] or "$"))
        return ConfigError(f'{where}unknown field "{unknown[1]}"{place} of {kind.__name__}.', next=hint)
    return ConfigError(f"{where}{kind.__name__}: {text}.", next="holdfast <verb> --help says what each field takes.")


def _field_names(kind: type[Record], path: str) -> tuple[str, ...]:
    """Names of the fields of the struct that `path` (`$.attacks[0]`) leads to."""
    info: Any = _type_info(kind)
    for part in re.findall(r"\.(\w+)", path):
        field = next((f for f in info.fields if f.encode_name == part), None)
        if field is None:
            break
        info = field.type
        while not isinstance(info, msgspec.inspect.StructType):
            inner = getattr(info, "item_type", None) or next(
                (t for t in getattr(info, "types", ()) if not isinstance(t, msgspec.inspect.NoneType)), None
            )
            if inner is None:
                return ()
            info = inner
    return tuple(f.encode_name for f in info.fields)
