"""The rubric as data: taxonomy, criteria and weights, with a version and a hash (fgce/rubric.yaml)."""

import hashlib
import json
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from string import Template
from typing import Annotated, Any, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fgce.schema import Function, Modality, RubricInfo, ScoreMode

DEFAULT_RUBRIC = Path(__file__).with_name("rubric.yaml")


class RubricError(ValueError):
    """A rubric file is unusable; the message names the file, the line and the mend."""


def _template(*names: str) -> Callable[[str], str]:
    """A check that a prompt fills in exactly these $names."""

    def check(text: str) -> str:
        found = set(Template(text).get_identifiers())
        if found != set(names) or not Template(text).is_valid():
            wanted, there = (", ".join(f"${name}" for name in sorted(some)) or "none" for some in (set(names), found))
            raise ValueError(f"the prompt must fill in {wanted} (write $$ for a dollar sign); it has {there}")
        return text

    return check


def _exactly(keys: Collection[Any]) -> AfterValidator:
    """A check that a mapping has these keys and no others."""

    def check(found: dict[Any, Any]) -> dict[Any, Any]:
        missing = [key for key in keys if key not in found]
        surplus = [key for key in found if key not in keys]
        if missing or surplus:
            raise ValueError(f"missing {missing}, not expected {surplus}")
        return found

    return AfterValidator(check)


def _weightless(*names: str) -> AfterValidator:
    """A check that these labels weigh 0 and no others: what is scored counts, and nothing else does."""

    def check(labels: dict[str, "Label"]) -> dict[str, "Label"]:
        found = [name for name, label in labels.items() if not label.weight]
        if found != list(names):
            raise ValueError(f"{list(names)} must weigh 0 and no others, as what is scored counts; found {found}")
        return labels

    return AfterValidator(check)


class Label(BaseModel):
    """A function or a modality: what it means and what a sentence that has it weighs."""

    model_config = ConfigDict(extra="forbid")
    definition: Annotated[str, Field(min_length=1)]
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class JsonAnswers(BaseModel):
    """How the json protocol asks for an answer."""

    model_config = ConfigDict(extra="forbid")
    label: str
    rate: str
    rate_and_explain: str


class FastAnswers(BaseModel):
    """How the fast protocol asks for an answer."""

    model_config = ConfigDict(extra="forbid")
    label: str
    rate: str


class Answers(BaseModel):
    """How each protocol asks for an answer."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    json_: JsonAnswers = Field(alias="json")
    fast: FastAnswers


class Prompts(BaseModel):
    """What a judge that is a language model reads: a template a step, and what goes into both."""

    model_config = ConfigDict(extra="forbid")
    label: Annotated[str, AfterValidator(_template("functions", "modalities", "modality_rules", "guard", "answer"))]
    rate: Annotated[
        str, AfterValidator(_template("function", "definition", "criteria", "scoring_rules", "guard", "answer"))
    ]
    guard: str
    answers: Answers


_SCORED = [name for name in get_args(Function) if name != "others"]


class Criteria(BaseModel):
    """What each score of a mode's scale means, by function."""

    model_config = ConfigDict(extra="forbid")
    fine_grained: Annotated[dict[Function, Annotated[dict[int, str], _exactly(range(1, 6))]], _exactly(_SCORED)]
    binary: Annotated[dict[Function, Annotated[dict[int, str], _exactly(range(2))]], _exactly(_SCORED)]


class Rubric(BaseModel):
    """Both steps' instructions and the weights of the sample-level score.

    The labels and scales are FG-CE's and fixed; wording, criteria and weights are the file's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: Annotated[str, Field(min_length=1)]
    functions: Annotated[dict[Function, Label], _exactly(get_args(Function)), _weightless("others")]
    modalities: Annotated[dict[Modality, Label], _exactly(get_args(Modality)), _weightless()]
    modality_rules: list[str]
    scoring_rules: list[str]
    criteria: Criteria
    prompts: Prompts

    def levels(self, mode: ScoreMode, function: Function) -> dict[int, str]:
        """What each score means for sentences of a function."""
        return (self.criteria.fine_grained if mode == "fine_grained" else self.criteria.binary)[function]

    def weight(self, function: Function, modality: Modality) -> float:
        """w_j = w_function * w_modality."""
        return self.functions[function].weight * self.modalities[modality].weight

    @cached_property
    def info(self) -> RubricInfo:
        """Version and hash. The hash is of the content: comments and layout of the file do not change it."""
        content = json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True, ensure_ascii=False)
        return RubricInfo(version=self.version, sha256=hashlib.sha256(content.encode()).hexdigest())


def load_rubric(path: Path = DEFAULT_RUBRIC) -> Rubric:
    """Reads and checks a rubric file.

    Raises:
        RubricError: the file is missing, is not YAML, or breaks the rubric's form.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        return Rubric.model_validate(yaml.safe_load(text))
    except OSError as error:
        raise RubricError(f"{path}: cannot be read: {error.strerror}; give the path of a rubric file") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise RubricError(f"{path}: not YAML: {error}") from error
    except ValidationError as error:
        problems = [
            f"{path}:{_line_of(tree, problem['loc'])}: {'.'.join(map(str, problem['loc'])) or 'rubric'}: "
            f"{problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors()
        ]
        raise RubricError("\n".join(problems)) from error


def _line_of(node: yaml.Node | None, loc: tuple[int | str, ...]) -> int:
    """The line of the deepest node on the way to `loc` that the file has, counted from 1."""
    line = node.start_mark.line if node else 0
    for step in loc:
        children: list[tuple[yaml.Node, yaml.Node]] = []
        if isinstance(node, yaml.MappingNode):
            children = [pair for pair in node.value if pair[0].value == str(step)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            children = [(node.value[step], node.value[step])]
        if not children:
            break
        key, node = children[0]
        line = key.start_mark.line
    return line + 1
