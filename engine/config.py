"""Configuration: a YAML file and `--a.b value` overrides become one validated, frozen pydantic model.

    load_config   file + overrides -> model; everything that is wrong comes in one UserError
    dump_config   model -> YAML text that loads to an equal model
    describe      model class -> the text of `--help`

YAML here has the scalars of YAML 1.2: `3e-4` is a number, `on` and `2024-01-01` are text, `010` is ten. (PyYAML's own
rules are those of 1.1, by which the learning rate `3e-4` is text.) A validated model may be any pydantic model; strict
types, frozen and `extra="forbid"` are the model's own choice.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from siri.engine.errors import UserError

Model = TypeVar("Model", bound=BaseModel)

SCALARS = (
    ("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+$"), list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+0123456789."),
    ),
)


class _Loader(yaml.SafeLoader):
    """JSON's types only: no dates, sets, binary, aliases or merges."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (an instance variable to the stubs of PyYAML)
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "float", "str", "seq", "map")
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "an alias (*name) is not allowed here; write it out", mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes what either set of rules would take for something other than text."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        # YAML reads these as line breaks, which it folds into a space; PyYAML escapes them between double quotes only.
        style = '"' if any(character in text for character in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


for _tag, _pattern, _first in SCALARS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)
_Dumper.add_representer(str, _Dumper.represent_str)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Override:
    value: Any
    text: str
    """As typed: what a field of type text takes, where `value` is something else (`--name 007`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    """A leaf of the model, from its JSON schema."""

    name: str
    schema: Mapping[str, Any]
    required: bool

    @property
    def kind(self) -> str:
        return _kind(self.schema)

    @property
    def default(self) -> str:
        return "required" if self.required else f"default {_show(self.schema.get('default'))}"


def load_config(model: type[Model], path: str | None, overrides: Sequence[str] = ()) -> Model:
    """The configuration of a run.

    `path` is a YAML file with a mapping of fields (None: all defaults). `overrides` are command-line words:
    `--optim.lr 1e-4` or `--optim.lr=1e-4`, values read as YAML, the last one of a field wins.
    Raises UserError with every problem found, one a line: field, value, rule, remedy.
    """
    data = {} if path is None else _read_yaml(path)
    given = _parse_overrides(overrides)
    for name, override in given.items():
        _put(data, name, override.value)
    try:
        return _validate(model, data)
    except ValidationError as first:
        error = first
    # A number or null typed for a field of type text is that text.
    for detail in error.errors():
        name = _dotted(detail)
        if detail["type"] == "string_type" and name in given:
            _put(data, name, given[name].text)
    try:
        return _validate(model, data)
    except ValidationError as second:
        raise UserError(_explain(model, second, path, given)) from None


def dump_config(config: BaseModel) -> str:
    """YAML of the resolved configuration, defaults included, in the order of the fields."""
    data = config.model_dump(mode="json")
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)


def describe(model: type[BaseModel]) -> str:
    """One entry a field: dotted name, type, bounds, default, and the docstring under the field."""
    lines = []
    for field in _fields(model).values():
        lines.append(f"--{field.name}  {field.kind}, {field.default}")
        if text := field.schema.get("description"):
            lines.append("    " + " ".join(text.split()))
    return "\n".join(lines)


def _validate(model: type[Model], data: Any) -> Model:
    # Through JSON, because strict validation of JSON takes a list for a tuple and text for a path or an enum.
    return model.model_validate_json(json.dumps(data))


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"configuration {path}: there is no such file; check the path after --config") from None
    except OSError as error:
        raise UserError(f"configuration {path}: cannot be read ({error.strerror}); give a readable YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"configuration {path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        data = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"configuration {path}: not valid YAML: {_yaml_problem(error)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(
            f"configuration {path}: holds {_show(data)}, not a mapping; write one `field: value` a line, e.g. `seed: 1`"
        )
    if twice := list(_duplicates(node)):
        raise UserError(f"configuration {path}: " + "; ".join(twice) + "; keep one of them")
    return data


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error) or type(error).__name__
    return " ".join(problem.split()) + (f" (line {mark.line + 1}, column {mark.column + 1})" if mark else "")


def _duplicates(node: Any, prefix: str = "") -> Iterator[str]:
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        name, line = f"{prefix}{key.value}", key.start_mark.line + 1
        if name in lines:
            yield f"{name} is set twice (lines {lines[name]} and {line})"
        lines[name] = line
        yield from _duplicates(value, f"{name}.")


def _parse_overrides(words: Sequence[str]) -> dict[str, _Override]:
    overrides: dict[str, _Override] = {}
    rest = iter(words)
    for word in rest:
        if not re.match(r"--[^-=]", word):
            raise UserError(f"command line: {word!r} is not an option; write --field value, e.g. --optim.lr 1e-4")
        name, equals, text = word[2:].partition("=")
        if not equals:
            text = next(rest, "--")
            if text.startswith("--"):
                raise UserError(f"--{name}: the value is missing; write --{name} VALUE (or --{name}=VALUE)")
        # Text that is not YAML (`[1`, `a: b: c`) is kept as text, for the field's type to judge.
        try:
            value = yaml.load(text, Loader=_Loader)
        except (yaml.YAMLError, ValueError):
            value = text
        overrides[name] = _Override(value=value, text=text)
    return overrides


def _put(data: dict[str, Any], name: str, value: Any) -> None:
    *sections, leaf = name.split(".")
    inner: Any = data
    for section in sections:
        if inner.get(section) is None:
            inner[section] = {}
        inner = inner[section]
        if not isinstance(inner, dict):
            return  # the file has a value where a section belongs: validation says so
    inner[leaf] = value


def _fields(model: type[BaseModel]) -> dict[str, _Field]:
    """Every leaf field by its dotted name."""
    schema = model.model_json_schema()
    return {field.name: field for field in _leaves(schema, schema.get("$defs", {}), "", {})}


def _leaves(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str, defaults: Mapping[str, Any]
) -> Iterator[_Field]:
    for key, field in schema["properties"].items():
        field = dict(field)
        if key in defaults:
            field["default"] = defaults[key]
        section = definitions.get(field.get("$ref", "").removeprefix("#/$defs/"), {})
        if "properties" in section:
            yield from _leaves(section, definitions, f"{prefix}{key}.", field.get("default", {}))
        else:
            yield _Field(name=prefix + key, schema={**section, **field}, required="default" not in field)


def _kind(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " | ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}" if "items" in schema else "list"
    names = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false"}
    name = names.get(schema.get("type", ""), schema.get("type", "value"))
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:g}" for key, sign in bounds.items() if key in schema]
    return " ".join([name, " and ".join(limits)]) if limits else name


def _explain(model: type[BaseModel], error: ValidationError, path: str | None, given: Mapping[str, _Override]) -> str:
    fields = _fields(model)
    problems = []
    for detail in error.errors():
        name = _dotted(detail)
        typed = any(f"{name}.".startswith(f"{key}.") or key.startswith(f"{name}.") for key in given) and name
        source = "--" if typed else f"configuration {path}: " if path and name else ""
        problems.append(source + _problem(detail, name, fields))
    if len(problems) == 1:
        return problems[0]
    return "\n  ".join([f"{len(problems)} problems in the configuration:", *problems])


def _problem(detail: ErrorDetails, name: str, fields: Mapping[str, _Field]) -> str:
    if detail["type"] == "value_error":  # raised by a validator of the model, whose message is complete
        message = str(detail["ctx"]["error"])
        return message if not name or message.startswith(name) else f"{name}: {message}"
    if detail["type"] == "extra_forbidden":
        return f"{name}: there is no such field; {_nearest(name, fields)}"
    owner = next((fields[p] for p in _prefixes(name) if p in fields), None)
    if detail["type"] == "missing":
        return f"{name}: is required; add it" + (f" ({owner.kind})" if owner else "")
    value = _show(detail["input"])
    if owner is None:  # a whole section
        return f"{name or 'the configuration'}: {value} is not a section; write its fields, indented, or leave it out"
    rule = detail["msg"].removeprefix("Input should be ")
    guess = get_close_matches(str(detail["input"]), owner.schema.get("enum", []), n=1)
    remedy = f"did you mean {guess[0]}?" if guess else f"give {owner.kind} ({owner.default})"
    return f"{name}: {value} should be {rule}; {remedy}"


def _nearest(name: str, fields: Mapping[str, _Field]) -> str:
    """What the writer may have meant: a sibling spelled alike, the same name in another section, or the siblings."""
    section, _, leaf = name.rpartition(".")
    depth = name.count(".") + 1
    siblings = {".".join(key.split(".")[:depth]) for key in fields if key.startswith(f"{section}." if section else "")}
    elsewhere = {key.rpartition(".")[2]: key for key in fields}
    if guess := get_close_matches(name, sorted(siblings), n=1, cutoff=0.75):
        return f"did you mean {guess[0]}?"
    if guess := get_close_matches(leaf, sorted(elsewhere), n=1, cutoff=0.8):
        return f"did you mean {elsewhere[guess[0]]}?"
    if siblings:
        return "known here: " + ", ".join(sorted(key.rpartition(".")[2] for key in siblings))
    return "see --help for all fields"


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        yield ".".join(parts[:length])


def _dotted(detail: ErrorDetails) -> str:
    return ".".join(str(part) for part in detail["loc"])


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
