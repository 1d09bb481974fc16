"""The base class of settings in YAML files and on the command line, checked by pydantic.

Texts are read as YAML where a setting is no text; what does not fit is a RoadError.
"""

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from typing_extensions import Self

from roadint.errors import RoadError, did_you_mean, listing, quoted
from roadint.files.yaml import parse_yaml

FLOAT32 = 3.4028234663852886e38  # the largest: beyond it values that are trained are infinite


def _as_number(value: Any) -> Any:
    """A float of a whole number and of a text."""
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            raise ValueError(": expected a number") from None
    return value


def _as_list(value: Any) -> Any:
    """A list of a tuple, and of a single value."""
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, list) else [value]


_NUMBER, _LIST = BeforeValidator(_as_number), BeforeValidator(_as_list)

Index = Annotated[int, Field(ge=0, le=2**31 - 1)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Finite = Annotated[float, Field(ge=-FLOAT32, le=FLOAT32), _NUMBER]
Positive = Annotated[float, Field(gt=0, le=FLOAT32), _NUMBER]
NotNegative = Annotated[float, Field(ge=0, le=FLOAT32), _NUMBER]
Share = Annotated[float, Field(ge=0, le=1), _NUMBER]
Epochs = Annotated[float, Field(gt=0, le=1e6), _NUMBER]
Warmup = Annotated[float, Field(ge=0, le=2**31 - 1), _NUMBER]
NameList = Annotated[list[str], _LIST]
Indices = Annotated[list[Index], _LIST]


class Section(BaseModel):
    """The base class of groups of settings; making one raises RoadError for what does not fit."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True
    )
    noun: ClassVar[str] = "recipe"  # the name of the whole, for messages
    short_names: ClassVar[Mapping[str, str]] = {}  # where they differ from the settings' names

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise _refusal(error, type(self)) from None

    @classmethod
    def short(cls, name: str) -> str:
        """The short name of a setting, without its section."""
        return cls.short_names.get(name, name)

    def changed(self, settings: Mapping[str, Any]) -> Self:
        """Change some settings, in a new section. Raises RoadError for what does not fit."""
        return type(self)(**{**dict(self), **settings})

    @field_validator("*", mode="before")
    @classmethod
    def _from_text(cls, value: Any, info: ValidationInfo) -> Any:
        hint = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, str) and _reads_yaml(value, hint):
            try:
                return parse_yaml(value, "")
            except RoadError as error:
                raise ValueError(str(error)) from None
        return dict(value) if isinstance(value, Mapping) else value


def _reads_yaml(text: str, hint: Any) -> bool:
    """Whether a text is YAML for a setting: the setting takes no text, or a list of texts."""
    options = [option for option in _options(hint) if option is not type(None)]
    if list[str] in options:
        return text.lstrip().startswith("[")
    return str not in options and any(get_origin(option) is not Literal for option in options)


def _options(hint: Any) -> Iterator[Any]:
    """The types that a setting may have."""
    if get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from _options(part)
    else:
        yield get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _refusal(error: ValidationError, section: type[Section]) -> RoadError:
    """The first error of pydantic's, as a message that names the value and what was expected."""
    problems = error.errors()
    first = problems[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RoadError):
        return cause
    if not first["loc"]:
        return RoadError(f"{section.noun}: {first['msg']}")
    name, *inside = first["loc"]
    if first["type"] == "extra_forbidden":
        known = list(section.model_fields)
        return RoadError(
            f"{section.noun} has no setting {quoted(name)}: expected one of {listing(known)}"
            f"{did_you_mean(name, known)}"
        )
    called = f"{section.noun} setting {section.short(str(name))}"
    if inside and inside[-1] == "[key]":
        return RoadError(f"{called} has the name {quoted(first['input'])}: expected text")
    hint = section.model_fields[str(name)]
    if inside and get_origin(hint.annotation) is dict:
        called += f".{inside[0]}"
    called += f"={quoted(first['input'])}"
    if cause is not None:
        return RoadError(f"{called}{cause}")
    if first["type"].startswith(("greater_than", "less_than")):
        return RoadError(f"{called} must be {_range_of(hint)}")
    if first["type"] == "dict_type":
        return RoadError(f"{called}: expected a mapping such as {{german: …}}")
    alike = [problem for problem in problems if problem["loc"][0] == name]
    expected = dict.fromkeys(map(_expectation, alike))
    return RoadError(f"{called} does not fit: expected {', '.join(expected)}")


_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
_TYPES = {"string_type": "str"}  # the others are called as pydantic calls the error


def _expectation(problem: Any) -> str:
    if problem["type"] == "literal_error":
        return str(problem["ctx"]["expected"])
    return repr(_TYPES.get(problem["type"], problem["type"].removesuffix("_type")))


def _range_of(field: FieldInfo) -> str:
    """The numbers that a setting takes, itself or in its list or mapping."""
    parts = []
    for part in [*field.metadata, *_metadata(field.annotation)]:
        for name, word in _BOUNDS.items():
            if abs(getattr(part, name, FLOAT32)) < FLOAT32:
                parts.append(f"{word} {getattr(part, name):,.12g}")
    return " and ".join(parts) or "any finite number"


def _metadata(hint: Any) -> Iterator[Any]:
    """What is annotated anywhere inside of a type."""
    for part in get_args(hint):
        if isinstance(part, FieldInfo):
            yield from part.metadata
        yield from _metadata(part)
