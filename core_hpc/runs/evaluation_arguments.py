"""Arguments of `core_hpc.evaluate` that name problem sets and ways of sampling.

In: the texts of `--problems`, and temperatures. Out: parts of a sweep file with a short name each.
Which sweep they become is decided in `runs/evaluation.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

import yaml
from core_hpc.common.errors import InputError
from core_hpc.config.problems import PROBLEM_SOURCES, ProblemSource
from core_hpc.config.yaml_mistakes import explain_yaml
from core_hpc.config.yaml_text import parse_yaml
from core_hpc.problems.datasets import HUB

Fields = dict[str, Any]
"""A part of a sweep file."""
SOURCE: TypeAdapter[Any] = TypeAdapter(ProblemSource)
MAX_NAME = 40
"""Characters of a name that is made from that of a model or a sweep."""


@dataclass(frozen=True)
class NamedSet:
    """A problem set: its name in labels, and the fields of `problems.evaluation`."""

    name: str
    source: Fields


@dataclass(frozen=True)
class NamedSampling:
    """A way of sampling: its name in labels, the number of completions, and fields of `evaluation.sampling`."""

    name: str
    samples: int
    sampling: Fields


def parse_set(text: str, *, count: int | None) -> NamedSet:
    """Parse an argument of `--problems`.

    Args:
        text: SET or NAME=SET. SET is a source with subset and split (`gsm8k:test`,
            `math:math-500`, `generated:skills`), a file (`held_out.jsonl`, `held_out.jsonl:latex`),
            or the fields of `problems.evaluation` as YAML (`{source: gsm8k, count: 100}`).
        count: Problems to draw or generate, if the set itself has no count.

    Raises:
        InputError: It is none of these.

    >>> parse_set("math:math-500", count=20)
    NamedSet(name='math-math-500', source={'source': 'math', 'subset': 'math-500', 'count': 20})
    """
    named = re.fullmatch(r"([A-Za-z0-9._-]+)=(.+)", text, re.DOTALL)
    name, spec = (named[1], named[2]) if named else (None, text)
    source = _mapping(text, spec) if spec.lstrip().startswith("{") else _source(text, spec)
    if count is not None:
        source = {"count": count, **source} if "count" in source else {**source, "count": count}
    if isinstance(source.get("path"), str):  # a file of this name in another folder is another problem set
        source = {**source, "path": str(Path(source["path"]).expanduser().absolute())}
    try:
        SOURCE.validate_python(source)
    except ValidationError as e:
        paths = [".".join(map(str, m["loc"][1:])) or "source" for m in e.errors()]
        mistakes = "; ".join(
            "count: is missing; add --count N" if (path, m["type"]) == ("count", "missing") else f"{path}: {m['msg']}"
            for path, m in zip(paths, e.errors(), strict=True)
        )
        raise InputError(f"--problems {text}: {mistakes}") from e
    made_up = "-".join(str(source[k]) for k in ("source", "task", "subset", "split") if source.get(k))
    path = source.get("path")
    return NamedSet(slug(name or (Path(path).stem if path else made_up)), source)


def _mapping(text: str, spec: str) -> Fields:
    try:
        found = parse_yaml(spec)
    except yaml.YAMLError as e:
        raise InputError(f"--problems {text}: not valid YAML: {explain_yaml(e, spec)}") from e
    if not isinstance(found, dict):
        raise InputError(f"--problems {text}: write the fields as {{source: gsm8k, count: 100}}")
    return found


def _source(text: str, spec: str) -> Fields:
    head, *rest = spec.split(":")
    suffix = Path(head).suffix
    if suffix in (".jsonl", ".parquet"):
        return {"source": suffix.removeprefix("."), "path": head, **({"answer_kind": rest[0]} if rest else {})}
    if head in HUB:
        fields: Fields = {"source": head}
        for part in rest:
            fields["subset" if part in HUB[head] and "subset" not in fields else "split"] = part
        return fields
    if head in ("generated", "reasoning_gym"):
        return {"source": head, **({"task": rest[0]} if rest else {})}
    known = ", ".join(name for name in PROBLEM_SOURCES if name in HUB or name in ("generated", "reasoning_gym"))
    raise InputError(
        f"--problems {text}: unknown problem set; write one of {known} (with :SUBSET, :SPLIT or :TASK after it), a "
        "file with the suffix .jsonl or .parquet, or the fields of problems.evaluation as {source: ..., ...}"
    )


def samplings(temperatures: Sequence[float], *, samples: int, others: Mapping[str, Any]) -> list[NamedSampling]:
    """The ways of sampling, one per temperature. Greedy decoding (temperature 0) has one completion.

    Args:
        temperatures: Of the ways.
        samples: Completions per problem and model.
        others: The other fields of `evaluation.sampling`.

    >>> [(s.name, s.samples) for s in samplings([0, 0.7], samples=8, others={})]
    [('greedy', 1), ('t0.7', 8)]
    """
    return [
        NamedSampling(f"t{t:g}" if t else "greedy", samples if t else 1, {**others, "temperature": t})
        for t in dict.fromkeys(temperatures)
    ]


def slug(text: str) -> str:
    """A name as `team[].name` and `name` allow it.

    >>> slug("Qwen/Qwen3-0.6B")
    'qwen-qwen3-0-6b'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:MAX_NAME].strip("-") or "model"
