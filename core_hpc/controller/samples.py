"""Pages of sample texts for TensorBoard: a few problems of each evaluation, with one completion each.

In: the published rows of the main evaluation set. Out: one page of Markdown per model and evaluation.
The problems are chosen once, by what the model did in the first evaluation of the run, and are the
same in all pages of the model. Only their texts are decoded, so the memory does not depend on the
size of an evaluation. The page of all completions is `analysis browse`.

The text of a model is data. No character of it can begin Markdown, HTML or a link (`escaped`).
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from core_hpc.common.seeds import stable_seed
from core_hpc.problems.sets import set_names, set_of
from core_hpc.problems.splits import EVALUATION
from core_hpc.runs.folder import Run
from core_hpc.store import shards
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import PROBLEMS, ROLLOUTS

TAG = "samples/evaluation"
NUM_SOLVED, NUM_FAILED, NUM_TRUNCATED = 2, 2, 1
"""Problems on a page, as far as there are such problems."""
MAX_QUESTION_CHARACTERS, MAX_COMPLETION_CHARACTERS, MAX_ANSWER_CHARACTERS = 1500, 3000, 200
TRUNCATED = "length"
"""The `finish_reason` of a completion that was cut at the token limit."""

_OUTCOME = ("problem_id", "sample_index", "finish_reason", "correct")
_SHOWN = (*_OUTCOME, "num_completion_tokens", "text", "answer", "gold", "verdict")
_AS_IT_IS = frozenset(string.ascii_letters + string.digits + " ")
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that reverse the order in which the following ones are shown."""


@dataclass(frozen=True)
class _Chosen:
    """A completion that every page shows.

    Attributes:
        why: what the problem was in the first evaluation: solved, failed or truncated.
    """

    problem_id: str
    sample_index: int
    why: str


class SamplePages:
    """The pages of one run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._chosen: dict[str, list[_Chosen]] = {}
        self._questions: dict[str, str] = {}

    @property
    def are_chosen(self) -> bool:
        """Whether the problems are chosen."""
        return bool(self._chosen)

    def choose(self, keys: Sequence[TaskKey]) -> None:
        """Choose the problems of all models from the first evaluation.

        Args:
            keys: all its tasks.
        """
        for model in dict.fromkeys(key.model for key in keys):
            own = [key for key in keys if key.model == model]
            rows = shards.read_tasks(self._run.root, own, ROLLOUTS, columns=_OUTCOME)
            rows = rows.filter(set_of(set_names(self._run.config)) == "")
            self._chosen[model] = _choose(rows, self._run.config.seed)
        wanted = {c.problem_id for chosen in self._chosen.values() for c in chosen}
        path = self._run.paths.problems / f"{EVALUATION}.manifest.json"
        columns = ("problem_id", "question")
        problems = shards.read_problems(path, PROBLEMS, problem_ids=sorted(wanted), columns=columns, checksum=True)
        self._questions = dict(problems.iter_rows())

    def page(self, model: str, keys: Sequence[TaskKey]) -> str:
        """The page of a model for an evaluation; empty if it has none of the problems.

        Args:
            keys: all tasks of the evaluation.
        """
        chosen = self._chosen.get(model, [])
        paths = [self._run.paths.task_manifest(key) for key in keys if key.model == model]
        ids = [c.problem_id for c in chosen]
        frames = [
            shards.read_problems(path, ROLLOUTS, problem_ids=ids, columns=_SHOWN, checksum=True)
            for path in paths
            if ids
        ]
        if not frames:
            return ""
        rows = pl.concat(frames)
        parts = []
        for number, c in enumerate(chosen, 1):
            own = rows.filter(problem_id=c.problem_id)
            shown = own.filter(sample_index=c.sample_index)
            if not shown.is_empty():
                text = _section(c, shown.row(0, named=True), own, self._questions.get(c.problem_id, ""))
                parts.append(f"### Problem {number}: {text}")
        return "\n\n".join(parts)


def _choose(rows: pl.DataFrame, seed: int) -> list[_Chosen]:
    """Choose completions by their outcome, in an order that the seed fixes. A problem is chosen once."""
    cut = pl.col("finish_reason") == TRUNCATED
    index = pl.col("sample_index")
    problems = rows.group_by("problem_id").agg(
        solved=index.filter(pl.col("correct")).min(),
        failed=pl.when(~pl.col("correct").any()).then(index.min()),
        truncated=index.filter(cut).min(),
    )
    order = sorted(problems.iter_rows(named=True), key=lambda p: stable_seed(seed, "sample texts", p["problem_id"]))
    chosen: dict[str, _Chosen] = {}
    for why, number in (("truncated", NUM_TRUNCATED), ("solved", NUM_SOLVED), ("failed", NUM_FAILED)):
        found = [p for p in order if p[why] is not None and p["problem_id"] not in chosen][:number]
        chosen |= {p["problem_id"]: _Chosen(p["problem_id"], p[why], why) for p in found}
    kinds = ("solved", "failed", "truncated")
    return sorted(chosen.values(), key=lambda c: kinds.index(c.why))


def _section(chosen: _Chosen, row: dict[str, object], own: pl.DataFrame, question: str) -> str:
    """One problem: its title, its question, and what the model did."""
    cut = ", cut at the token limit" if row["finish_reason"] == TRUNCATED else ""
    answer = "none" if row["answer"] is None else escaped(str(row["answer"]), MAX_ANSWER_CHARACTERS)
    return "\n\n".join(
        [
            f"**{escaped(str(row['verdict']).replace('_', ' '))}**; {own['correct'].sum()} of {own.height} completions "
            f"are correct; {chosen.why} in the first evaluation",
            f"{escaped(chosen.problem_id, MAX_ANSWER_CHARACTERS)}, completion {chosen.sample_index}, "
            f"{row['num_completion_tokens']} tokens{cut}",
            f"**Question**\n\n{_block(question, MAX_QUESTION_CHARACTERS)}",
            f"**Completion**\n\n{_block(str(row['text']), MAX_COMPLETION_CHARACTERS)}",
            f"**Extracted answer:** {answer}\n\n**Gold answer:** {escaped(str(row['gold']), MAX_ANSWER_CHARACTERS)}",
        ]
    )


def _block(text: str, limit: int) -> str:
    return f"> {escaped(text, limit)}"


def escaped(text: str, limit: int | None = None) -> str:
    """Text that Markdown and HTML show as it is, on one line of Markdown.

    Every character that is not an ASCII letter, a digit or a space is a numeric reference, so none of them
    is read as markup. Control characters and marks that reverse the direction are replaced.

    Args:
        text: of a model or a data set.
        limit: if it has more characters, those in the middle are left out. The answer is at the end.

    >>> escaped("<b>1</b>")
    '&#60;b&#62;1&#60;&#47;b&#62;'
    """
    if limit is not None and len(text) > limit:
        first, last = limit - limit // 3, limit // 3
        left_out = f"<br>**[{len(text) - first - last:,} characters are left out]**<br>"
        return escaped(text[:first]) + left_out + escaped(text[len(text) - last :])
    return "".join(map(_reference, text))


def _reference(character: str) -> str:
    if character in _AS_IT_IS:
        return character
    if character == "\n":
        return "<br>"
    if character in _DIRECTIONS or (unicodedata.category(character) == "Cc" and character != "\t"):
        character = "\ufffd"
    return f"&#{ord(character)};"
