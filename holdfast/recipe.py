"""Recipes: pipelines of verbs in YAML. Every step has its own `out`, so that a recipe run again continues."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from holdfast import configs
from holdfast.codec import Record, build
from holdfast.configs import RunConfig
from holdfast.errors import ConfigError, nearest
from holdfast.progress import Say
from holdfast.train_config import TrainConfig

Play = Callable[[str, Record, Say], object]

CONFIGS: dict[str, type[Record]] = {
    "train": TrainConfig,
    "probe": configs.ProbeConfig,
    "bench": configs.BenchConfig,
    "corrupt": configs.CorruptConfig,
    "report": configs.ReportConfig,
}


class Step(Record, frozen=True, kw_only=True):
    """One step of a recipe.

    Attributes:
        verb: train, probe, bench, corrupt or report.
        config: its fields; `{out}` in a string is the recipe's folder, `{name}` an input, or a word of the options
            chosen; a string that is nothing else becomes the word itself, a number or a list.
        when: options, by choice, under one of which the step is played; empty = always.
    """

    verb: str
    config: dict[str, Any]
    when: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)


class Recipe(Record, frozen=True, kw_only=True):
    """A pipeline.

    Attributes:
        about: what it does, in one line.
        cost: how long it took, where and when.
        inputs: what a person must give, name by name, with what it is; `{name}` in a step stands for its value.
        choices: choice -> option -> words: `--set scale=small` puts the words of `small` in the place of their names.
            The first option is taken where none is chosen; a single word can be set as well: `--set epochs=3`.
        published: row -> the numbers that were published for it, protocol and source in words.
        steps: in order.
        next: what to do after it.
    """

    about: str
    cost: str = ""
    inputs: dict[str, str] = msgspec.field(default_factory=dict)
    choices: dict[str, dict[str, dict[str, Any]]] = msgspec.field(default_factory=dict)
    published: dict[str, str] = msgspec.field(default_factory=dict)
    steps: tuple[Step, ...]
    next: str = ""


def names() -> dict[str, str]:
    """The shipped recipes: name -> what it does."""
    files = sorted(f.name for f in resources.files("holdfast.recipes").iterdir() if f.name.endswith(".yaml"))
    return {name.removesuffix(".yaml"): find(name.removesuffix(".yaml"))[1].about for name in files}


def find(recipe: str) -> tuple[str, Recipe]:
    """A recipe and its name.

    Args:
        recipe: a shipped recipe's name, or a YAML file.

    Raises:
        ConfigError: no such recipe or file, or one that is no recipe.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"There is no file {recipe}.", asked=f"The recipe {recipe} was asked for.")
        name, text = path.stem, path.read_text()
    else:
        shipped = resources.files("holdfast.recipes") / f"{recipe}.yaml"
        if not recipe or not shipped.is_file():
            known = [f.name.removesuffix(".yaml") for f in resources.files("holdfast.recipes").iterdir()]
            hint = nearest(recipe, [name for name in known if not name.startswith("__")])
            raise ConfigError(f'no recipe is called "{recipe}".', next=hint)
        name, text = recipe, shipped.read_text()
    try:
        return name, build(Recipe, msgspec.yaml.decode(text), origin=f"{name}.yaml")
    except msgspec.DecodeError as error:
        raise ConfigError(f"{recipe} is not YAML: {error}.") from None


def play(config: RunConfig, say: Say, do: Play) -> Path:
    """Play a recipe's steps in order.

    Args:
        config: which recipe, where to, on which device.
        say: prints a line.
        do: does one step: (verb, config, say).

    Returns:
        The folder of the steps.
    """
    name, recipe = find(config.recipe)
    out = Path(config.out or f"runs/{name}")
    chosen, words = _chosen(recipe, config.set, name)
    words = {**words, "out": str(out), **_inputs(recipe, config.inputs, name)}
    wanted = (step for step in recipe.steps if all(chosen[choice] in options for choice, options in step.when.items()))
    steps = [(step.verb, _config(step, words, config.device, name)) for step in wanted]
    say(f"{name}    {recipe.about}")
    if chosen:
        say(f"set     {' '.join(f'{choice}={option}' for choice, option in chosen.items())}")
    for number, (verb, step) in enumerate(steps, start=1):
        say(f"step {number} of {len(steps)}  {verb} {getattr(step, 'out', '')}".rstrip())
        if not config.dry_run:
            do(verb, step, say)
    if recipe.cost and config.dry_run:
        say(f"cost    {recipe.cost}")
    for row, numbers in recipe.published.items():
        say(f"published    {row}: {numbers}")
    if recipe.next and not config.dry_run:
        say(f"next    {_placed(recipe.next, words)}")
    return out


def _chosen(recipe: Recipe, given: Sequence[str], name: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The option of every choice, and the words that they and what was set stand for."""
    chosen = {choice: next(iter(options)) for choice, options in recipe.choices.items()}
    single: dict[str, Any] = {}
    known = {word for options in recipe.choices.values() for words in options.values() for word in words}
    for text in given:
        key, equals, value = text.partition("=")
        if equals and key in recipe.choices:
            if value not in recipe.choices[key]:
                raise ConfigError(
                    f'{key} is one of {", ".join(recipe.choices[key])}, not "{value}".',
                    next=nearest(value, recipe.choices[key]),
                )
            chosen[key] = value
        elif equals and key in known:
            single[key] = msgspec.yaml.decode(value) if value else ""
        else:
            every = [*recipe.choices, *sorted(known)]
            hint = nearest(key, every) if every else f"{name} has no choices."
            raise ConfigError(f'the recipe {name} has nothing to set by "{text}".', next=f"Write name=value. {hint}")
    words: dict[str, Any] = {}
    for choice, option in chosen.items():
        words |= recipe.choices[choice][option]
    return chosen, words | single


def _inputs(recipe: Recipe, given: Sequence[str], name: str) -> dict[str, str]:
    """What was given for each input that the recipe asks for."""
    found: dict[str, str] = {}
    for word in given:
        key, equals, value = word.partition("=")
        if not (equals and key in recipe.inputs):
            hint = nearest(key, recipe.inputs) if recipe.inputs else f"{name} asks for none."
            raise ConfigError(f'the recipe {name} has no input "{word}".', next=f"Write name=value. {hint}")
        found[key] = value
    missing = {key: what for key, what in recipe.inputs.items() if key not in found}
    if missing:
        told = "; ".join(f"{key}: {what}" for key, what in missing.items())
        typed = " ".join(f"{key}=..." for key in recipe.inputs)
        raise ConfigError(f"the recipe {name} needs {told}.", next=f"holdfast run {name} --inputs {typed}")
    return found


def _config(step: Step, words: Mapping[str, Any], device: str, name: str) -> Record:
    if step.verb not in CONFIGS:
        raise ConfigError(f'{name}.yaml has a step "{step.verb}".', next=nearest(step.verb, CONFIGS))
    kind = CONFIGS[step.verb]
    fields = _placed(step.config, words)
    if "device" in kind.__struct_fields__:
        fields.setdefault("device", device)
    return build(kind, fields, origin=f"{name}.yaml, step {step.verb}")


def _placed(value: Any, words: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        if value[:1] == "{" and value[-1:] == "}" and value[1:-1] in words:
            word = words[value[1:-1]]
            return word if word == value else _placed(word, words)
        for name, word in words.items():
            value = value.replace(f"{{{name}}}", str(word))
        return value
    if isinstance(value, Mapping):
        return {key: _placed(part, words) for key, part in value.items()}
    return [_placed(part, words) for part in value] if isinstance(value, list) else value
