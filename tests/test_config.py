from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from siri.engine.config import describe, dump_config, load_config
from siri.engine.errors import UserError


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Optim(Section):
    lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3e-4
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the
    learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decays."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Most steps."""


class Run(Section):
    name: str = "default"
    """Folder of the run."""
    note: str | None = None
    """Free text."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed."""
    tensorboard: bool = False
    """Events too."""
    colour: Colour = Colour.RED
    """Paint."""
    optim: Optim = Optim(lr=1e-3)
    """AdamW."""

    @model_validator(mode="after")
    def _combinations(self) -> "Run":
        if self.optim.schedule == "cosine" and self.optim.limit is None:
            raise ValueError("optim.limit: null, but optim.schedule: cosine needs an end; set optim.limit")
        return self


class Needy(Section):
    model: str
    """Which model."""


def write(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_defaults_file_and_overrides_in_that_order(tmp_path):
    path = write(tmp_path, "seed: 3\noptim:\n  lr: 2e-5   # comment\n  betas: [0.8, 0.95]\ncolour: blue\n")
    assert load_config(Run, None).optim.lr == 1e-3
    config = load_config(Run, path, ["--seed", "4", "--optim.limit=7", "--seed=5", "--note", "two words"])
    assert (config.seed, config.colour, config.note) == (5, Colour.BLUE, "two words")
    assert config.optim == Optim(lr=2e-5, betas=(0.8, 0.95), limit=7)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1E5", 1e5), ("1", 1.0), (".5", 0.5), ("2.", 2.0), ("1.5e+3", 1500.0), ("010", 10.0)],
)
def test_numbers_as_people_write_them(tmp_path, text, value):
    assert load_config(Run, write(tmp_path, f"optim: {{lr: {text}}}")).optim.lr == value
    assert load_config(Run, None, ["--optim.lr", text]).optim.lr == value


@pytest.mark.parametrize("text", ["on", "yes", "2024-01-01", "1:30", "1_000", "=", "<<", "0x1f"])
def test_text_that_yaml_1_1_would_turn_into_something_else(tmp_path, text):
    assert load_config(Run, write(tmp_path, f"name: {text}\n")).name == text


@pytest.mark.parametrize("text", ["007", "1e5", "true", "null", "", "[1, 2", "a: b", "@home", "-1", "{}"])
def test_whatever_is_typed_for_a_text_field_is_text(text):
    assert load_config(Run, None, ["--name", text]).name == text


def test_null_on_the_command_line_is_null_where_null_is_allowed():
    assert load_config(Run, None, ["--note", "null"]).note is None


def test_an_empty_section_and_an_empty_file_are_all_defaults(tmp_path):
    assert load_config(Run, write(tmp_path, "# nothing yet\n")) == Run()
    assert load_config(Run, write(tmp_path, "\ufeffseed: 2\n")).seed == 2
    path = write(tmp_path, "optim:\n")
    assert load_config(Run, path, ["--optim.lr", "5"]).optim.lr == 5.0


BAD_FILES = {
    "unknown_key": ("optim:\n  lrr: 1\n", ["optim.lrr", "no such field", "did you mean optim.lr?"]),
    "key_of_another_section": ("lr: 1\n", ["lr: there is no such field", "did you mean optim.lr?"]),
    "unlike_anything": ("optim: {zebra: 1}\n", ["optim.zebra", "known here: betas, limit, lr, schedule"]),
    "misspelt_section": ("optm: {lr: 1}\n", ["optm", "did you mean optim?"]),
    "text_for_number": ("optim: {lr: fast}\n", ["optim.lr", '"fast"', "valid number", "number >= 0 (default 0.001)"]),
    "number_for_text": ("name: 7\n", ["name: 7", "valid string", 'text (default "default")']),
    "float_for_integer": ("seed: 1.5\n", ["seed: 1.5", "valid integer", "integer >= 0"]),
    "integer_for_boolean": ("tensorboard: 1\n", ["tensorboard: 1", "true or false"]),
    "boolean_for_integer": ("seed: true\n", ["seed: true", "integer"]),
    "yes_is_not_a_boolean": ("tensorboard: yes\n", ["tensorboard", '"yes"', "true or false"]),
    "out_of_range": ("optim: {lr: -1}\n", ["optim.lr: -1", "greater than or equal to 0"]),
    "not_finite": ("optim: {lr: .inf}\n", ["optim.lr", "finite"]),
    "nan": ("optim: {lr: .nan}\n", ["optim.lr", "finite"]),
    "not_a_choice": ("optim: {schedule: cosin}\n", ["optim.schedule", '"cosin"', "did you mean cosine?"]),
    "not_a_choice_at_all": ("optim: {schedule: up}\n", ["optim.schedule", "constant | cosine"]),
    "not_an_enum_value": ("colour: bleu\n", ["colour", "did you mean blue?"]),
    "too_long_a_list": ("optim: {betas: [1, 2, 3]}\n", ["optim.betas", "[1, 2, 3]"]),
    "wrong_item": ("optim: {betas: [1, x]}\n", ["optim.betas.1", '"x"']),
    "section_is_a_number": ("optim: 3\n", ["optim: 3", "not a section"]),
    "impossible_combination": ("optim: {schedule: cosine}\n", ["optim.limit: null", "set optim.limit"]),
    "duplicate_key": ("seed: 1\nname: a\nseed: 2\n", ["seed is set twice", "lines 1 and 3", "keep one"]),
    "duplicate_nested_key": ("optim:\n  lr: 1\n  lr: 1\n", ["optim.lr is set twice", "lines 2 and 3"]),
    "not_a_mapping": ("- 1\n- 2\n", ["not a mapping", "[1, 2]"]),
    "just_text": ("hello\n", ["not a mapping", "seed: 1"]),
    "tab": ("optim:\n\tlr: 1\n", ["not valid YAML", "line 2"]),
    "unclosed": ("optim: {lr: 1\n", ["not valid YAML", "line 2"]),
    "alias": ("name: &a x\nnote: *a\n", ["alias", "line 2"]),
    "python_tag": ("name: !!python/object:os.system x\n", ["not valid YAML", "python/object", "line 1"]),
    "date_tag": ("name: !!timestamp 2024-01-01\n", ["not valid YAML", "timestamp"]),
    "two_documents": ("seed: 1\n---\nseed: 2\n", ["not valid YAML", "document"]),
    "control_character": ("name: a\x00b\n", ["not valid YAML"]),
    "not_utf8": (b"name: caf\xe9\n", ["byte 9 is not UTF-8"]),
    "endless_number": ("seed: " + "9" * 5000, ["not valid YAML", "digits"]),
    "deep": ("[" * 5000, ["not valid YAML"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(tmp_path, case):
    text, expected = BAD_FILES[case]
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_config(Run, path)
    message = str(caught.value)
    for part in expected:
        assert part in message
    assert path in message or case == "impossible_combination"
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--optm.lr", "1"], ["--optm", "did you mean optim?"]),
        (["--optim.lr=-1"], ["--optim.lr: -1", "greater than or equal to 0"]),
        (["--optim.lr"], ["--optim.lr", "value is missing"]),
        (["--seed", "--name", "x"], ["--seed", "value is missing"]),
        (["seed=1"], ["'seed=1' is not an option"]),
        (["-s", "1"], ["'-s' is not an option"]),
        (["--", "1"], ["'--' is not an option"]),
        (["--optim", "3"], ["--optim: 3", "not a section"]),
        (["--seed.x", "3"], ["--seed", "valid integer"]),
        (["--tensorboard", "yes"], ["--tensorboard", "true or false"]),
    ],
)
def test_bad_command_line(words, expected):
    with pytest.raises(UserError) as caught:
        load_config(Run, None, words)
    assert all(part in str(caught.value) for part in expected)


def test_all_problems_come_at_once_each_with_its_source(tmp_path):
    path = write(tmp_path, "seed: -1\noptim: {lrr: 1, betas: 3}\n")
    with pytest.raises(UserError) as caught:
        load_config(Run, path, ["--tensorboard", "7"])
    first, *lines = str(caught.value).split("\n")
    assert first == "4 problems in the configuration:"
    assert sorted(line.split(";")[0] for line in lines) == sorted(
        [
            f"  configuration {path}: seed: -1 should be greater than or equal to 0",
            f"  configuration {path}: optim.lrr: there is no such field",
            f"  configuration {path}: optim.betas: 3 should be a valid array",
            "  --tensorboard: 7 should be a valid boolean",
        ]
    )


def test_a_required_field_is_asked_for():
    with pytest.raises(UserError, match=r"model: is required; add it \(text\)"):
        load_config(Needy, None)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_config(Run, str(tmp_path / "absent.yaml"))
    with pytest.raises(UserError, match="Is a directory"):
        load_config(Run, str(tmp_path))


texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["1e-4", "on", "null", "~", "010", "2024-01-01", ".inf", "a: b", "# x", "="]),
    st.sampled_from(["\x85", "a\x85b", "\u2028", "a\u2029\u00e9", "\n", "a\r\nb", "\ufeff", "\x85'\""]),
)


@given(
    name=texts,
    note=st.none() | texts,
    seed=st.integers(0, 10**30),
    lr=st.floats(0, allow_nan=False, allow_infinity=False),
    colour=st.sampled_from(Colour),
)
def test_a_dumped_configuration_loads_to_an_equal_one(tmp_path_factory, name, note, seed, lr, colour):
    config = Run(name=name, note=note, seed=seed, colour=colour, optim=Optim(lr=lr))
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(Run, str(path)) == config
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["name"] == name  # other readers see the same text


def test_help_names_every_field_with_type_default_and_docstring():
    assert describe(Run).split("\n") == [
        '--name  text, default "default"',
        "    Folder of the run.",
        "--note  text or null, default null",
        "    Free text.",
        "--seed  integer >= 0, default 0",
        "    Seed.",
        "--tensorboard  true or false, default false",
        "    Events too.",
        '--colour  red | blue, default "red"',
        "    Paint.",
        "--optim.lr  number >= 0, default 0.001",
        "    Peak learning rate.",
        '--optim.schedule  constant | cosine, default "constant"',
        "    Course of the learning rate.",
        "--optim.betas  list, default [0.9, 0.99]",
        "    Decays.",
        "--optim.limit  integer >= 1 or null, default null",
        "    Most steps.",
    ]
    assert describe(Needy) == "--model  text, required\n    Which model."
