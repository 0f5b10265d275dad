"""Everything about one problem on the terminal: the page of `browse`, as text.

The input is a run and the id of a problem. The output goes to a console. Text of models is printed
as it is, except control characters, which could change the terminal.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
from rich.console import Console
from rich.text import Text

from analysis.browse.details import CHANGED, CUT, KEPT, Completion, Detail, Hint, ModelDetail, Reader
from analysis.browse.outcomes import outcomes_of
from analysis.counts.load import RunData, problems_of
from core_hpc.common.errors import InputError

REASONS = {
    "solved": "the model solved the problem cold",
    "no_teacher": "no other model solved the problem",
    "no_hint": "nothing was left of the teacher's completion without answers",
    "leak": "nothing was left before the gold answer",
}
_STYLES = {KEPT: "green", CUT: "strike dim", CHANGED: "yellow"}
_VERDICTS = {"correct": "green", "wrong": "red"}
_BOUNDS = ((-4.0, "white on red"), (-2.0, "red"), (-1.0, "dark_orange"), (-0.5, "yellow"))
_MAX_LISTED = 10


def show(data: RunData, problem: str, console: Console, *, iteration: int | None = None, colour: bool = False) -> None:
    """Print question, gold answer, completions, hint, rewards and advantages of one problem.

    Args:
        data: the run.
        problem: the id of the problem, or a part of it that only one id has.
        console: where to print.
        iteration: default: the latest iteration that has the problem.
        colour: colour tokens by log-probability, where the tokenizer is on this machine.

    Raises:
        InputError: no problem, or more than one, has this id in this iteration.
        StoreError: a published file is missing or damaged.
    """
    problems = problems_of(data.path, data.config)
    (outcomes,) = outcomes_of([data], [problems])
    rows = outcomes.select("split", "iteration", "problem_id").unique()
    split, problem_id = _found(data, rows, problem)
    own = sorted(rows.filter(pl.col("split") == split, pl.col("problem_id") == problem_id)["iteration"])
    chosen = own[-1] if iteration is None else iteration
    if chosen not in own:
        raise InputError(f"{data.path}: iteration {chosen} has no completions of {problem_id}; those that have: {own}")
    (detail,) = Reader(data, problems).read(split, chosen, [problem_id])
    for line in _lines(detail, own, colour=colour):
        console.print(line, highlight=False, soft_wrap=True)


def _found(data: RunData, rows: pl.DataFrame, problem: str) -> tuple[str, str]:
    """The split and the id of the only problem that has this id or part."""
    known = rows.select("split", "problem_id").unique().sort("split", "problem_id")
    with_split = pl.col("split") + "/" + pl.col("problem_id")
    exact = known.filter((pl.col("problem_id") == problem) | (with_split == problem))
    found = exact if exact.height else known.filter(pl.col("problem_id").str.contains(problem, literal=True))
    if found.height == 1:
        split, problem_id = found.row(0)
        return split, problem_id
    if exact.height:
        both = " or ".join("/".join(row) for row in exact.rows())
        raise InputError(f"{data.path}: problems of both splits have the id {problem!r}; give {both}")
    some = (found if found.height else known)["problem_id"].unique(maintain_order=True)
    listed = ", ".join(some.head(_MAX_LISTED)) + (", .." if some.len() > _MAX_LISTED else "")
    if not found.height:
        raise InputError(f"{data.path}: no published problem has {problem!r} in its id; ids are, for example: {listed}")
    raise InputError(f"{data.path}: {found.height} problems have {problem!r} in their id; give a longer part: {listed}")


def _lines(detail: Detail, iterations: list[int], *, colour: bool) -> Iterator[Text]:
    others = ", ".join(map(str, iterations))
    where = f"run {detail.run}, {detail.split} problem, iteration {detail.iteration} (published: {others})"
    yield Text(detail.problem_id, style="bold")
    yield Text(where, style="dim")
    for name, value in detail.attributes.items():
        yield Text(f"{name.replace('_', ' ')}: {clean(value)}", style="dim")
    yield Text(f"\n{clean(detail.question)}\n")
    yield Text.assemble("gold answer: ", (clean(detail.gold), "bold"))
    for model in detail.models:
        yield from _model(model, colour=colour)


def _model(model: ModelDetail, *, colour: bool) -> Iterator[Text]:
    yield Text(f"\n━━ {model.model} ━━", style="bold")
    for completion in model.completions:
        yield from _completion(completion, colour=colour)
    if model.hint is not None:
        yield from _hint(model.hint)
    for completion in model.rescues:
        yield from _completion(completion, colour=colour)


def _hint(hint: Hint) -> Iterator[Text]:
    if hint.text is None:
        yield Text(f"\nno hint: {REASONS.get(hint.reason, hint.reason)}", style="dim")
        return
    leak = f", gold answer in it: {hint.leak}" if hint.leak not in (None, "none") else ""
    made = f", made from problem {hint.other_problem}" if hint.other_problem is not None else ""
    yield Text(f"\nhint from {hint.teacher} #{hint.sample}{made}, {hint.num_tokens} tokens{leak}", style="bold cyan")
    if not hint.segments:
        yield Text(clean(hint.text))
        return
    cut = Text("what the hint cut is in [[ ]]: ", style="dim")
    for kind, text in hint.segments:
        marked = f"[[{clean(text)}]]" if kind == CUT else clean(text)
        cut.append(marked, style=_STYLES[kind])
    yield cut


def _completion(completion: Completion, *, colour: bool) -> Iterator[Text]:
    kinds = [completion.phase, f"#{completion.sample}"]
    if completion.phase == "rescue":
        kinds.append("with the hint" if completion.hinted else "without the hint (control)")
    head = Text("\n" + " ".join(kinds) + ": ")
    head.append(completion.verdict.replace("_", " "), style=_VERDICTS.get(completion.verdict, "yellow"))
    facts = [f"answer {clean(completion.answer)}"] if completion.answer is not None else []
    facts += [f"{completion.num_tokens} tokens"] if completion.num_tokens is not None else []
    facts += ["truncated"] * completion.truncated
    if completion.reward is not None and completion.advantage is not None:
        facts += [f"reward {completion.reward:.2f}", f"advantage {completion.advantage:+.2f}"]
        facts += [f"{part.replace('_', ' ')} {value:.2f}" for part, value in completion.parts.items()]
    head.append(", " + ", ".join(facts), style="dim")
    yield head
    yield _coloured(completion) if colour and completion.pieces is not None else Text(clean(completion.text))


def _coloured(completion: Completion) -> Text:
    text = Text()
    for piece, logprob in zip(completion.pieces or (), completion.logprobs, strict=True):
        text.append(clean(piece), style=next((style for bound, style in _BOUNDS if logprob < bound), ""))
    return text


def clean(text: str) -> str:
    """The text without control characters, except line breaks and tabs.

    >>> clean("a\\x1b[31mb\\n")
    'a�[31mb\\n'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
