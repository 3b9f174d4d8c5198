"""Recipes: one TOML file for all stages, read strictly into the dataclasses of each section.

A recipe may extend one other file (`extends = "other.toml"`, beside it), and a command line may
override single keys (`--set chips.stride=16`). Unknown keys and wrong types are refused.
"""

import dataclasses
import difflib
import hashlib
import math
import tomllib
import types
import typing
from pathlib import Path
from typing import Any

import msgspec

from chipgen.errors import Refusal

# Each package reads its own sections and passes over the others', yet a typo is still caught.
SECTIONS = (
    "chips", "negatives", "shards",  # chipgen
    "model", "labels", "augment", "feedback", "train",  # train
    "infer",
    "cluster",  # scripts/slurm
)  # fmt: skip
SHIPPED = Path(__file__).resolve().parent.parent / "scripts" / "recipes"


def locate(name: str) -> Path:
    """Turn a recipe's path, or the bare name of a shipped one, into an existing path."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = SHIPPED / f"{name}.toml"
    if "/" not in name and shipped.is_file():
        return shipped
    known = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.toml")))
    raise Refusal(f"recipe {name}: no such file; give a path or one of the shipped: {known}")


def load(
    name: str, sections: dict[str, type], overrides: typing.Sequence[str] = ()
) -> dict[str, Any]:
    """Read the named sections of a recipe: `{"chips": ChipSettings, ...}` -> instances by name."""
    table = load_table(name, overrides)
    where = locate(name)
    return {key: build(cls, table.get(key, {}), f"{where}: {key}") for key, cls in sections.items()}


def load_table(name: str, overrides: typing.Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe as a plain table, with what it extends and what overrides it."""
    path = locate(name)
    table = _read(path)
    base = table.pop("extends", None)
    if base is not None:
        base_path = path.parent / str(base)
        if not base_path.is_file():
            raise Refusal(f"{path}: extends {base!r}, but {base_path} does not exist")
        base_table = _read(base_path)
        if "extends" in base_table:
            raise Refusal(f"{path}: extends {base}, which extends again; one level is the limit")
        table = _merge(base_table, table)
    for text in overrides:
        table = _merge(table, _override(text))
    for key in table:
        if key not in SECTIONS:
            raise Refusal(f"{path}: unknown section [{key}]{_nearest(key, SECTIONS)}")
    return table


def override(table: dict[str, Any], section: str, texts: typing.Sequence[str]) -> dict[str, Any]:
    """Override keys of one section, given as a plain table."""
    whole = {section: table}
    for text in texts:
        whole = _merge(whole, _override(text))
    for key in whole:
        if key != section:
            raise Refusal(f"--set {key}...: only keys of [{section}] can be set here")
    return whole[section]


def digest(*settings: Any) -> str:
    """Hash settings by content: equal settings give equal hashes, however they were written."""
    plain = [dataclasses.asdict(one) for one in settings]
    return hashlib.sha256(msgspec.json.encode(plain)).hexdigest()


def _read(path: Path) -> dict:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refusal(f"recipe {path}: not valid TOML: {error}") from error


def _merge(base: dict, over: dict) -> dict:
    merged = dict(base)
    for key, value in over.items():
        both_tables = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_tables else value
    return merged


def _override(text: str) -> dict:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise Refusal(f"--set {text}: expected key=value, for example --set chips.stride=16")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        parsed = value.strip()  # a bare word is a string
        if parsed.startswith(("[", "{", '"', "'")):
            raise Refusal(f"--set {text}: not valid TOML: {error}") from error
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return parsed


def build(cls: type, table: Any, where: str) -> Any:
    """Make a dataclass of a table from TOML or json; `where` leads to the place in messages."""
    if not isinstance(table, dict):
        raise Refusal(f"{where}: expected a table, got {table!r}")
    hints = typing.get_type_hints(cls)
    fields = [field.name for field in dataclasses.fields(cls)]
    for key in table:
        if key not in fields:
            raise Refusal(f"{where}: unknown key {key!r}{_nearest(key, fields)}")
    values = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in table.items()}
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise Refusal(f"{where}: {error}") from error


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where)
    if isinstance(kind, types.UnionType):  # `float | None`
        return None if value is None else _convert(typing.get_args(kind)[0], value, where)
    if typing.get_origin(kind) is tuple:
        return _convert_tuple(typing.get_args(kind), value, where)
    if typing.get_origin(kind) is typing.Literal:
        if value not in typing.get_args(kind):
            choices = ", ".join(typing.get_args(kind))
            raise Refusal(f"{where}: {value!r} is none of {choices}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    if kind is float and value is None:  # never from TOML; our own json has no infinity
        return math.inf
    if type(value) is not kind:
        raise Refusal(f"{where}: expected {kind.__name__}, got {value!r}")
    return value


def _convert_tuple(kinds: tuple, value: Any, where: str) -> tuple:
    if not isinstance(value, list):
        raise Refusal(f"{where}: expected a list, got {value!r}")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise Refusal(f"{where}: expected {len(kinds)} values, got {value!r}")
    pairs = zip(kinds, value, strict=True)
    return tuple(_convert(kind, one, f"{where}[{i}]") for i, (kind, one) in enumerate(pairs))


def _nearest(key: str, known: typing.Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
