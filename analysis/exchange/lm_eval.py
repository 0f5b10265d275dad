"""Results and samples of lm-evaluation-harness (0.4), as `--output_path` and `--log_samples` write them.

In: completions of one model, problem by problem. Out: a folder MODEL with

    results_DATE.json         the figures and settings of all tasks; a task is a set of problems
    samples_TASK_DATE.jsonl   one record per problem, with all completions of it as repeats

and for the import the lines of such a record. What the format has no field for (verdict, answer,
tokens of each completion) is in the field `core_hpc` of a record. Only one problem is in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from analysis.exchange.evaluation import OWN, Evaluation, Fields, utc
from core_hpc.store.schema import ATTRIBUTES, CORRECT

METRIC, FILTER = "pass@1", "none"
_INVALID = "[invalid]"
"""What a filter of this software gives for a completion without an answer."""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class LmEvalResults:
    """The folder of one model while it is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tasks: dict[str, _Task] = {}

    def add(self, evaluation: Evaluation, problem: Fields, completions: Sequence[Fields]) -> None:
        """Write all completions of one problem."""
        if evaluation.task not in self._tasks:
            folder = self._folder / evaluation.model
            folder.mkdir(exist_ok=True)
            self._tasks[evaluation.task] = _Task(folder, evaluation)
        self._tasks[evaluation.task].add(problem, completions)

    def finish(self) -> None:
        """Write the results."""
        tasks = list(self._tasks.values())
        path = tasks[0].folder / f"results_{tasks[0].date}.json"
        path.write_text(json.dumps(_results(tasks), indent=2, ensure_ascii=False), encoding="utf-8")

    def close(self) -> None:
        """Close the files."""
        for task in self._tasks.values():
            task.file.close()


class _Task:
    def __init__(self, folder: Path, evaluation: Evaluation) -> None:
        self.folder, self.evaluation = folder, evaluation
        self.date = utc(evaluation.finished_s).replace(tzinfo=None).isoformat().replace(":", "-")
        self.file: TextIO = (folder / f"samples_{evaluation.task}_{self.date}.jsonl").open("w", encoding="utf-8")
        self.hash = hashlib.sha256()
        self._positions = {problem: position for position, problem in enumerate(evaluation.problem_ids)}

    def add(self, problem: Fields, completions: Sequence[Fields]) -> None:
        self.evaluation.figures.add(completions)
        record = self._record(problem, completions)
        self.hash.update("".join(record[f"{name}_hash"] for name in ("doc", "prompt", "target")).encode())
        self.file.write(json.dumps(record, ensure_ascii=False) + "\n")

    @property
    def generation(self) -> Fields:
        sampling = self.evaluation.sampling
        if not sampling:
            return {}
        return {
            "do_sample": sampling["temperature"] > 0,
            "temperature": sampling["temperature"],
            "top_p": sampling["top_p"],
            "max_gen_toks": sampling["max_new_tokens"],
        }

    def _record(self, problem: Fields, completions: Sequence[Fields]) -> Fields:
        first = completions[0]
        known = {name: value for name, value in problem.items() if value is not None}
        doc = {"id": first["problem_id"], **known, "answer": first["gold"]}
        answers = [row["answer"] for row in completions]
        filtered = [_INVALID if answer is None else answer for answer in answers]
        prompt = problem["question"] or ""
        return {
            "doc_id": self._positions[first["problem_id"]],
            "doc": doc,
            "target": first["gold"],
            "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": self.generation}},
            "resps": [[row["text"] for row in completions]],
            "filtered_resps": filtered if len(filtered) == 1 else [filtered],
            "filter": FILTER,
            "metrics": [METRIC],
            "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
            "prompt_hash": _hash(prompt),
            "target_hash": _hash(first["gold"]),
            METRIC: sum(row["correct"] for row in completions) / len(completions),
            OWN: {
                "model": self.evaluation.model,
                "phase": self.evaluation.phase,
                "samples": [row["sample_index"] for row in completions],
                "answers": answers,
                "verdicts": [row["verdict"] for row in completions],
                "token_counts": [row["num_completion_tokens"] for row in completions],
                "truncated": [row["finish_reason"] == "length" for row in completions],
            },
        }


def _results(tasks: Sequence[_Task]) -> Fields:
    about = tasks[0].evaluation

    def of_tasks(value: Any) -> Fields:
        return {task.evaluation.task: value(task) for task in tasks}

    return {
        "results": of_tasks(_metrics),
        "group_subtasks": of_tasks(lambda _: []),
        "configs": of_tasks(_configuration),
        "versions": of_tasks(lambda _: None),
        "n-shot": of_tasks(lambda task: task.evaluation.num_examples),
        "higher_is_better": of_tasks(lambda _: {METRIC: True}),
        "n-samples": of_tasks(
            lambda task: {
                "original": len(task.evaluation.problem_ids),
                "effective": len(task.evaluation.figures.shares),
            }
        ),
        "config": {
            "model": OWN,
            "model_args": {"pretrained": about.source, **about.origin},
            "batch_size": None,
            "batch_sizes": [],
            "device": None,
            "use_cache": None,
            "limit": None,
            "bootstrap_iters": 0,
            "gen_kwargs": tasks[0].generation,
        },
        "git_hash": about.git_commit,
        "date": about.started_s,
        "task_hashes": of_tasks(lambda task: task.hash.hexdigest()),
        "model_source": OWN,
        "model_name": about.model,
        "model_name_sanitized": about.model,
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": None,
        "chat_template": None,
        "chat_template_sha": None,
        "total_evaluation_time_seconds": str(about.finished_s - about.started_s),
    }


def _metrics(task: _Task) -> Fields:
    figures, name = task.evaluation.figures, task.evaluation.task
    error = figures.standard_error
    return {
        "name": name,
        "alias": name,
        "sample_len": len(figures.shares),
        f"{METRIC},{FILTER}": figures.pass_at_1,
        f"{METRIC}_stderr,{FILTER}": "N/A" if error is None else error,
    }


def _configuration(task: _Task) -> Fields:
    about = task.evaluation
    return {
        "task": about.task,
        "output_type": "generate_until",
        "repeats": about.figures.most_samples,
        "num_fewshot": about.num_examples,
        "generation_kwargs": task.generation,
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
        "metadata": {OWN: about.origin, "version": about.version},
    }


def own_lines(record: Fields) -> list[Fields] | None:
    """The lines (`exchange/lines.py`) of a record that core_hpc wrote; None for others."""
    own = record.get(OWN)
    if not isinstance(own, dict):
        return None
    doc = record["doc"]
    common = {
        "problem": doc["id"],
        "model": own["model"],
        "phase": own["phase"],
        "gold": doc["answer"] or None,
        **{name: doc[name] for name in ("answer_kind", "question", *ATTRIBUTES) if name in doc},
    }
    columns = zip(
        record["resps"][0],
        own["samples"],
        own["answers"],
        own["verdicts"],
        own["token_counts"],
        own["truncated"],
        strict=True,
    )
    return [
        {
            **common,
            "sample": sample,
            "text": text,
            "answer": answer,
            "verdict": verdict,
            "correct": verdict == CORRECT,
            "token_count": num_tokens,
            "truncated": truncated,
        }
        for text, sample, answer, verdict, num_tokens, truncated in columns
    ]
