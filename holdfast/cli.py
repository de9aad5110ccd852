"""The command line: parse, merge with a YAML file, dispatch. A verb's flags are the fields of its config.

Needs no torch: `verbs` is imported after parsing. Exit codes: 0 done, 1 ours or the machine's, 2 what was typed or what
lies on disk, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from holdfast import codec, configs, records
from holdfast.codec import Record
from holdfast.errors import ConfigError, HoldfastError, Interrupted, UserError, nearest
from holdfast.train_config import TrainConfig


class Verb(NamedTuple):
    """One word of the command line.

    Attributes:
        config: its fields become flags.
        line: what it does.
        leading: field that is written without a flag; empty = none.
        fixed: values that the word itself decides; they are no flags.
    """

    config: type[Record]
    line: str
    leading: str = ""
    fixed: tuple[tuple[str, Any], ...] = ()


VERBS = {
    "demo": Verb(
        configs.RunConfig,
        "play the shipped recipe `demo`: train, harden, bench, page; no network, no data",
        fixed=(("recipe", "demo"),),
    ),
    "run": Verb(configs.RunConfig, "play a recipe: a shipped one, or a YAML file", "recipe"),
    "train": Verb(TrainConfig, "pre-train an encoder on a folder of images", "method"),
    "probe": Verb(configs.ProbeConfig, "fit a head on a frozen encoder", "encoder"),
    "attack": Verb(configs.AttackConfig, "look, do not measure: attack a few images, write a gallery", "encoder"),
    "bench": Verb(configs.BenchConfig, "measure encoders: clean, corrupted, attacked", "encoders"),
    "verify": Verb(configs.VerifyConfig, "judge the adversarial images on disk anew, apart from the attack", "runs"),
    "corrupt": Verb(configs.CorruptConfig, "write corrupted copies of images as ImageNet-C or CIFAR-10-C lie on disk"),
    "report": Verb(configs.ReportConfig, "draw the page and the tables from records", "runs"),
    "ls": Verb(configs.LsConfig, "list what exists, or what a run holds", "what"),
}

HELP = """usage: holdfast VERB [OPTIONS]

How robust is this self-supervised vision encoder, on every task that it serves, and how is it made more so?

verbs:
{verbs}

examples:
  holdfast demo
  holdfast train simclr --data imgs/ --model resnet18 --out runs/plain
  holdfast train simclr --data imgs/ --model resnet18 --adversary pgd --eps 4/255 --out runs/hard
  holdfast attack runs/plain --images cat.png dog.png --eps 4/255
  holdfast bench runs/plain runs/hard --data imgs/ --suite quick --out runs/bench
  holdfast verify runs/bench
  holdfast corrupt --data imgs/ --resize 256 --size 224 --out imgs-c
  holdfast report runs/bench

`holdfast VERB --help` shows every flag. `--config FILE` reads the same fields from YAML; flags win over it.
The same command run again continues where it stopped. `holdfast --version` prints the version.
"""


class Parsed(NamedTuple):
    """What a command line asks for.

    Attributes:
        verb: one of `VERBS`.
        config: file and flags merged.
        print_config: print the config as YAML and stop.
    """

    verb: str
    config: Record
    print_config: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: the words after `holdfast`; None = those of the process.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with _interruptible():
            code = _obey(words)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        # The reader (`| head`) has left; the interpreter must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 0
    except KeyboardInterrupt:
        what_next = "What was finished is on disk; the same command continues."
        return _complain(Interrupted("Interrupted.", next=what_next), words)
    except HoldfastError as error:
        return _complain(error, words)
    except OSError as error:
        found = f"{error.filename or 'Writing a file'}: {error.strerror or error}."
        return _complain(UserError(found, next="Choose another --out, or mend the folder or its disk."), words)
    except Exception as error:
        found = f"{type(error).__name__}: {error}." if str(error) else f"{type(error).__name__}."
        return _complain(HoldfastError(found, next="This is not your mistake. --debug shows the traceback."), words)


def parse(words: Sequence[str]) -> Parsed:
    """Read a command line, and the YAML file that it names.

    Args:
        words: the verb, then its arguments.

    Returns:
        The verb with its config.

    Raises:
        ConfigError: the verb, a flag, a number or a field of the file is not known; the nearest is named.
        SystemExit: `--help` (0), or a value that does not fit its flag (2); both have been printed.
    """
    name = words[0]
    if name not in VERBS:
        raise ConfigError(f'there is no verb "{name}".', next=nearest(name, VERBS))
    verb, rest = VERBS[name], list(words[1:])
    fields = _flag_fields(verb)
    _check_flags(rest, fields)
    base = _from_file(verb, _value_of("--config", rest))
    given = _with_tyro(name, rest, base, fields)
    merged = {field.name: getattr(given, field.name) for field in fields}
    return Parsed(name, msgspec.structs.replace(base, **merged), given.print_config)


def _obey(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        lines = "\n".join(f"  {name:8}{verb.line}" for name, verb in VERBS.items())
        print(HELP.format(verbs=lines), end="", file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        from holdfast import __version__

        print(f"holdfast {__version__}")
        return 0
    asked = parse(words)
    if asked.print_config:
        print(codec.to_yaml(asked.config), end="")
        return 0
    from holdfast import verbs

    return verbs.play(asked.verb, asked.config, say=_say)


# -- the file ----------------------------------------------------------------------------------------------------------


def _from_file(verb: Verb, path: str) -> Record:
    """The config that flags are laid over: the defaults, or those of a YAML file."""
    fields = _read_yaml(Path(path)) if path else {}
    for name, value in verb.fixed:
        if fields.setdefault(name, value) != value:
            raise ConfigError(f'{path} says {name} "{fields[name]}".', next=f"Use: holdfast run --config {path}")
    return codec.build(verb.config, fields, origin=path)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"There is no file {path}.", asked=f"--config {path}.", next="--print-config writes one.")
    try:
        fields = msgspec.yaml.decode(path.read_bytes())
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is not YAML: {error}.", next="Write one field per line: `eps: 8/255`.") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{path} holds no fields.", next="Write one field per line: `eps: 8/255`.")
    return fields


# -- the flags ---------------------------------------------------------------------------------------------------------


class _Flag(NamedTuple):
    name: str
    type: Any
    help: str


_OURS = (
    _Flag("config", str, "YAML file with the same fields; flags win over it"),
    _Flag("print_config", bool, "print the merged config as YAML, and stop"),
    _Flag("debug", bool, "show the traceback of an error"),
)


def _flag_fields(verb: Verb) -> tuple[_Flag, ...]:
    """The fields that a person can type: all but nested records and what the verb has fixed."""
    help_of = _help_texts(verb.config)
    fixed = {name for name, _ in verb.fixed}
    return tuple(
        _Flag(field.name, field.type, help_of.get(field.name, ""))
        for field in msgspec.structs.fields(verb.config)
        if field.name not in fixed and not _is_nested(field.type)
    )


def _is_nested(kind: Any) -> bool:
    parts = getattr(kind, "__args__", ())
    return any(_is_nested(part) for part in parts) or (isinstance(kind, type) and issubclass(kind, Record))


def _help_texts(kind: type) -> dict[str, str]:
    """Field -> text, from the `Attributes:` of the docstrings, bases first; "see `Model`." is looked up there."""
    texts: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        _, _, attributes = inspect.cleandoc(owner.__doc__ or "").partition("Attributes:\n")
        name = ""
        for line in attributes.splitlines():
            if line.startswith(" " * 8):
                texts[name] += " " + line.strip()
            elif ":" in line:
                name, _, text = line.strip().partition(": ")
                texts[name] = text
    return {name: _resolved(name, re.sub(r"(?<!\.)\.$", "", text)) for name, text in texts.items()}


def _resolved(name: str, text: str) -> str:
    if "`Model" not in text:
        return text
    model = _help_texts(records.Model)
    return model[name] if text == "see `Model`" else re.sub(r"^(specs )?as `Model\.spec`", model["spec"], text)


def _check_flags(words: Sequence[str], fields: Sequence[_Flag]) -> None:
    """Refuse an unknown flag before tyro does, in the words of every other error."""
    flags = [*fields, *_OURS]
    names = {f.name.replace("_", "-") for f in flags}
    known = {"help", *names, *(f"no-{f.name.replace('_', '-')}" for f in flags if f.type is bool)}
    for word in words:
        name = word.removeprefix("--").partition("=")[0].replace("_", "-")
        if word.startswith("--") and name not in known:
            hint = nearest(f"--{name}", (f"--{n}" for n in names))
            raise ConfigError(f"there is no flag --{name}.", next=hint)


def _value_of(flag: str, words: Sequence[str]) -> str:
    """The last value of a flag, before tyro has seen the words: the file's fields are tyro's defaults."""
    found = ""
    for i, word in enumerate(words):
        if word == flag and i + 1 < len(words):
            found = words[i + 1]
        elif word.startswith(f"{flag}="):
            found = word.partition("=")[2]
    return found


def _with_tyro(name: str, words: Sequence[str], base: Record, fields: Sequence[_Flag]) -> Any:
    """Parse with tyro into a flat twin of the config, whose defaults are those of `base`."""
    import dataclasses
    from typing import Annotated

    import tyro

    verb = VERBS[name]
    arguments = []
    for field in [*fields, *_OURS]:
        leading = field.name == verb.leading
        marks = [tyro.conf.Positional] if leading else [tyro.conf.FlagCreatePairsOff] if field in _OURS else []
        metavar = field.name.upper().removesuffix("S") if leading else _metavar(field.type)
        about = tyro.conf.arg(help=field.help, metavar=metavar, help_behavior_hint=_default_hint)
        arguments.append((field.name, Annotated[(field.type, about, *marks)]))
    twin = dataclasses.make_dataclass(verb.config.__name__, arguments)
    ours = {flag.name: flag.type() for flag in _OURS}
    default = twin(**{field.name: getattr(base, field.name) for field in fields}, **ours)
    nested = [f.name for f in msgspec.structs.fields(verb.config) if _is_nested(f.type)]
    also = f" In YAML and Python also: {', '.join(nested)}." if nested else ""
    head = f"{verb.line[0].upper()}{verb.line[1:]}.{also}"
    return tyro.cli(twin, prog=f"holdfast {name}", description=head, args=words, default=default, registry=_numbers())


def _metavar(kind: Any) -> str | None:
    """What help writes for a value; None = as tyro writes it."""
    parts = [part for part in getattr(kind, "__args__", ()) if part is not type(None)]
    if type(None) in getattr(kind, "__args__", ()):
        return _metavar(parts[0]) if len(parts) == 1 else None
    word = {str: "TEXT", int: "INTEGER", float: "NUMBER"}.get(kind)
    if word is None and getattr(kind, "__origin__", None) is tuple:
        item = _metavar(parts[0]) or "VALUE"
        return " ".join([item] * len(parts)) if ... not in parts else f"{item} ..."
    if word is None and all(isinstance(part, str) for part in parts) and parts:
        return "{" + ",".join(part or "''" for part in parts) + "}"
    return word


def _default_hint(default: str) -> str:
    return "" if default in ("", "''", "None", "False") else f"(default: {default})"


def _numbers() -> Any:
    """tyro's rule for floats: `8/255` is a number."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def _rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[float] | None:
        if info.type is not float:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="NUMBER",
            instance_from_str=lambda words: codec.number(words[0]),
            is_instance=lambda value: isinstance(value, int | float),
            str_from_instance=lambda value: [_spoken(value)],
        )

    return registry


def _spoken(value: float) -> str:
    """A number as a person writes it: whole multiples of 1/255 that have no short decimal as `8/255`."""
    levels = round(value * 255)
    return f"{levels}/255" if value == levels / 255 and len(repr(value)) > 6 else repr(value)


# -- the outside world -------------------------------------------------------------------------------------------------


def _say(line: str) -> None:
    print(line, flush=True)


def _complain(error: HoldfastError, words: Sequence[str]) -> int:
    """Print an error to stderr, in colour on a terminal; returns its exit code."""
    if "--debug" in words:
        traceback.print_exc()
    head = f"holdfast {words[0]}:" if words and words[0] in VERBS else "holdfast:"
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True, soft_wrap=True).print(Text.assemble((head, "bold red"), " ", str(error)))
    else:
        print(head, error, file=sys.stderr)
    return error.exit_code


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does, so that a scheduler's stop leaves whole files."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
