"""Pages of sample texts: which problems they show, and that TensorBoard shows every text as it is."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core_hpc.controller import samples
from core_hpc.controller.run_tracker import RunTracker
from core_hpc.runs.folder import Run
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import EVALUATE, ROLLOUTS
from core_hpc.store.shards import publish_frame, published_keys
from tests.support.analysis_data import rollout, rollouts
from tests.support.tracked_run import make_run

HOSTILE = (
    "# title\n\n    code *b* _c_ `d` <script>alert(1)</script> [x](javascript:alert(1)) ![i](http://host/x.png)\n"
    "```\n</blockquote></p><img src=x onerror=alert(1)> &amp; &#42; $x_1$ | a | b |\n|---|---|\n> quote\n"
    "<!-- c --> <![CDATA[ x ]]> <?php \\* 1. x\n- y\n<a href='http://host'>z</a> [r]: http://host\n===\n***"
)


class Shown(HTMLParser):
    """What a browser shows of a page: its text, with the elements that it uses."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.quotes: list[str] = []
        """The text of each block quote. Questions and completions are in such blocks."""
        self._quoted = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes += attrs
        if tag == "blockquote":
            self.quotes.append("")
            self._quoted = True
        elif tag == "br" and self._quoted:
            self.quotes[-1] += "\n"

    def handle_endtag(self, tag: str) -> None:
        self._quoted = self._quoted and tag != "blockquote"

    def handle_data(self, data: str) -> None:
        if self._quoted:
            self.quotes[-1] += data


def shown(markdown: str) -> Shown:
    """The page as TensorBoard's own text plugin renders it."""
    from tensorboard.plugin_util import markdown_to_safe_html

    return Shown(markdown_to_safe_html(markdown))


@example(HOSTILE)
@given(st.text(alphabet=st.one_of(st.characters(exclude_categories=["Cs", "Cc"]), st.sampled_from("\n<>&#*_`[]()|-"))))
def test_every_text_is_shown_as_it_is_and_nothing_in_it_is_markup(text: str) -> None:
    text = re.sub("[\u202a-\u202e\u2066-\u2069]", "", text)
    page = shown(f"**before**\n\n> {samples.escaped(f'x{text}x')}\n\n*after*")
    assert page.elements <= {"p", "strong", "em", "blockquote", "br"}
    assert page.attributes == []
    # The parser of Markdown puts a line break of its own around the paragraph of a quote.
    assert page.quotes == [f"\nx{text}x\n"]


def test_control_characters_and_reversed_directions_are_replaced() -> None:
    text = samples.escaped("a\x00b\x1b[2Jc\u202ed\r")
    assert shown(f"> {text}").quotes == ["\na\ufffdb\ufffd[2Jc\ufffdd\ufffd\n"]


def publish(run: Run, iteration: int, outcomes: dict[str, str], **values: Any) -> None:
    """Publish an evaluation of m0 in parts of two problems, and one of m1 that solves everything.

    Args:
        outcomes: for each problem one letter per completion: c correct, w wrong, t truncated.
    """
    kinds: dict[str, dict[str, Any]] = {
        "c": {"correct": True},
        "w": {"correct": False},
        "t": {"correct": False, "finish_reason": "length", "verdict": "no_answer", "answer": None},
    }
    problems = list(outcomes)
    for part in range(0, len(problems), 2):
        for model in ("m0", "m1"):
            rows = [
                rollout(
                    phase=EVALUATE,
                    model=model,
                    iteration=iteration,
                    problem_id=problem,
                    sample_index=index,
                    **{"text": f"{problem} sample {index} of {iteration}", **values},
                    **kinds[letter if model == "m0" else "c"],
                )
                for problem in problems[part : part + 2]
                for index, letter in enumerate(outcomes[problem])
            ]
            key = TaskKey(iteration, EVALUATE, model, part // 2)
            publish_frame(run.paths.task_folder(key), run.paths.task_name(key), rollouts(rows), ROLLOUTS)


def write(run: Run, *, order: list[int] | None = None, restarts: bool = False) -> None:
    """Write the event files anew, as a start does, or in the order in which evaluations are published.

    Args:
        run: a run whose event files do not exist, or are removed.
        order: iterations in the order of their evaluations.
        restarts: whether another start begins after every task.
    """
    tracker, published = RunTracker(run, anew=True), set(published_keys(run.root))
    if order is None:
        tracker.catch_up(published)
    for position, iteration in enumerate(order or []):
        for key in sorted(k for k in published if k.iteration == iteration):
            if restarts:
                tracker.close(finished=False)
                tracker = RunTracker(run)
            earlier = {k for k in published if k.iteration in (order or [])[:position]}
            tracker.task_published(key, earlier | {k for k in published if k.iteration == iteration and k <= key})
    tracker.close(finished=False)


def pages(run: Run, model: str) -> dict[int, str]:
    """Read the pages of a model back from its event files. Each step must be there once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.paths.tensorboard / model), size_guidance={"tensors": 0})
    events.Reload()
    found = events.Tensors(samples.TAG) if samples.TAG in events.Tags()["tensors"] else []
    assert len({e.step for e in found}) == len(found)
    return {e.step: e.tensor_proto.string_val[0].decode() for e in found}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with twelve held-out problems, which is evaluated before and after each of two iterations."""
    source = {"source": "generated", "task": "addition_chain"}
    return make_run(
        tmp_path,
        problems={"train": {**source, "count": 8, "seed": 1}, "evaluation": {**source, "count": 12, "seed": 2}},
        evaluation={"samples": 2, "every": 1},
    )


def outcomes_of(run: Run, *letters: str) -> dict[str, str]:
    return dict(zip(run.split("evaluation")["problem_id"], letters, strict=True))


def kinds_shown(page: str) -> list[str]:
    return re.findall(r"are correct; (\w+) in the first evaluation", page)


def test_two_solved_two_failed_and_one_truncated_problem_are_in_every_evaluation(run: Run) -> None:
    first = outcomes_of(run, "cc", "ww", "cw", "wt", "wc", "ww", "tw", "ww", "cc", "ww", "cw", "ww")
    publish(run, 0, first)
    publish(run, 1, outcomes_of(run, *["cc"] * 12))
    publish(run, 2, outcomes_of(run, *["ww"] * 12))
    write(run)
    found = pages(run, "m0")
    assert set(found) == {0, 1, 2}
    assert kinds_shown(found[0]) == ["solved", "solved", "failed", "failed", "truncated"]
    texts = {step: shown(page).quotes for step, page in found.items()}
    questions = dict(run.split("evaluation").select("question", "problem_id").iter_rows())
    problems = [questions[quote.strip()] for quote in texts[0][::2]]
    assert len(set(problems)) == 5
    for step in (1, 2):
        assert texts[step][::2] == texts[0][::2]
    for kind, problem, completion in zip(kinds_shown(found[0]), problems, texts[0][1::2], strict=True):
        letters = first[problem]
        index = {"solved": letters.find("c"), "failed": 0, "truncated": letters.find("t")}[kind]
        assert ("c" in letters) == (kind == "solved") or kind == "truncated"
        assert completion.strip() == f"{problem} sample {index} of 0"
    assert kinds_shown(pages(run, "m1")[0]) == ["solved", "solved"]


def test_the_pages_do_not_depend_on_the_order_of_publications_or_on_restarts(run: Run) -> None:
    publish(run, 0, outcomes_of(run, *["cw"] * 6, *["ww"] * 6))
    publish(run, 1, outcomes_of(run, *["ww"] * 6, *["cw"] * 6))
    write(run)
    at_a_start = pages(run, "m0")
    for order in ([0, 1], [1, 0]):
        for restarts in (False, True):
            write(run, order=order, restarts=restarts)
            assert pages(run, "m0") == at_a_start
    assert set(at_a_start) == {0, 1}


def test_another_seed_chooses_other_problems(tmp_path: Path) -> None:
    source = {"source": "generated", "task": "addition_chain", "count": 40}
    problems = {"train": {**source, "seed": 1}, "evaluation": {**source, "seed": 2}}
    chosen = []
    for seed in (1, 2, 1):
        (folder := tmp_path / str(len(chosen))).mkdir()
        run = make_run(folder, seed=seed, problems=problems, evaluation={"samples": 2})
        publish(run, 0, outcomes_of(run, *["cw"] * 20, *["ww"] * 20))
        write(run)
        chosen.append(shown(pages(run, "m0")[0]).quotes[::2])
    assert chosen[0] != chosen[1]
    assert chosen[0] == chosen[2]


def test_a_page_of_long_and_hostile_texts_is_short_and_has_no_markup_of_theirs(run: Run) -> None:
    publish(run, 0, outcomes_of(run, *["ww"] * 12), text=HOSTILE + "a" * 1_000_000 + "the end", answer=HOSTILE)
    write(run)
    page = pages(run, "m0")[0]
    assert len(page) < 100_000
    seen = shown(page)
    assert seen.elements <= {"h3", "p", "strong", "blockquote", "br"}
    assert seen.attributes == []
    completion = seen.quotes[1]
    assert completion.strip().startswith(HOSTILE[:50])
    assert completion.strip().endswith("the end")
    assert "characters are left out" in completion
