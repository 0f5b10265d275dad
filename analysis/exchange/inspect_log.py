"""Logs of Inspect (inspect_ai, `EvalLog` of version 2): a zip archive for each evaluation.

In: completions, problem by problem. Out: a file `DATE_TASK_ID.eval`, which `inspect view` and
`inspect_ai.log.read_eval_log` open, and for the import the fields of a sample of such a file. A
completion is a sample: the problem is its id, and the number of the completion its epoch. The
entries of the archive are

    _journal/start.json       the evaluation and its plan
    samples/ID_epoch_N.json   one sample
    summaries.json            short forms of all samples, for lists
    header.json               everything but the samples, with the results

Only one problem is in memory. The summaries wait in a temporary file.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from analysis.exchange.evaluation import OWN, Evaluation, Fields, utc
from core_hpc.store.schema import ATTRIBUTES, CORRECT, NO_ANSWER, TIMEOUT, VERDICTS

VERSION = 2
"""Of the schema of Inspect's logs."""
_MAX_SUMMARY_CHARS = 5120
_VALUES = {CORRECT: "C", NO_ANSWER: "N"}
_WRONG = "I"
_STOP_REASONS = {"stop": "stop", "length": "max_tokens"}
_TIMED_OUT = "The verification timed out."


class InspectLogs:
    """The logs of one model, one for each set of problems, while they are written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, _Log] = {}

    def add(self, evaluation: Evaluation, problem: Fields, completions: Sequence[Fields]) -> None:
        """Write all completions of one problem."""
        if evaluation.task not in self._open:
            self._open[evaluation.task] = _Log(self._folder, evaluation)
        self._open[evaluation.task].add(problem, completions)

    def finish(self) -> None:
        """Write the results."""
        for log in self._open.values():
            log.finish()

    def close(self) -> None:
        """Close the files."""
        for log in self._open.values():
            log.close()


class _Log:
    def __init__(self, folder: Path, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.model = f"{OWN}/{evaluation.model}"
        self.finished = utc(evaluation.finished_s)
        # The parts of the name are divided by _ and have no : in them.
        date, task = self._time(self.finished).replace(":", "-"), re.sub(r"[^A-Za-z0-9.-]+", "-", evaluation.task)
        path = folder / f"{date}_{task}_{evaluation.identifier('task')}.eval"
        self.archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
        self.summaries = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed by `close`)
        self._write("_journal/start.json", {"version": VERSION, "eval": self._spec(), "plan": self._plan()})

    @staticmethod
    def _time(date: datetime) -> str:
        return date.isoformat(timespec="seconds")

    def _entry(self, name: str) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name, self.finished.timetuple()[:6])
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = 0o644 << 16
        return info

    def _write(self, name: str, content: Any) -> None:
        self.archive.writestr(self._entry(name), json.dumps(content, ensure_ascii=False))

    def add(self, problem: Fields, completions: Sequence[Fields]) -> None:
        self.evaluation.figures.add(completions)
        for row in completions:
            sample = self._sample(problem, row)
            self._write(f"samples/{sample['id']}_epoch_{sample['epoch']}.json", sample)
            self.summaries.write(b",\n" if self.summaries.tell() else b"[")
            self.summaries.write(json.dumps(_summary(sample), ensure_ascii=False).encode())

    def finish(self) -> None:
        self.summaries.write(b"]")
        self.summaries.seek(0)
        with self.archive.open(self._entry("summaries.json"), "w", force_zip64=True) as entry:
            shutil.copyfileobj(self.summaries, entry)
        self._write("header.json", self._header())
        self.archive.close()

    def close(self) -> None:
        self.summaries.close()
        self.archive.close()

    # --- parts of a log --------------------------------------------------------------------------

    def _sample(self, problem: Fields, row: Fields) -> Fields:
        epoch = row["sample_index"] + 1
        uid = self.evaluation.identifier(row["problem_id"], epoch)
        question, text = problem["question"] or "", row["text"]
        answer = {
            "id": f"{uid}-answer",
            "content": text,
            "source": "generate",
            "role": "assistant",
            "model": self.model,
        }
        usage = _usage(row["num_prompt_tokens"], row["num_completion_tokens"])
        score = {
            "value": _VALUES.get(row["verdict"], _WRONG),
            "answer": row["answer"],
            "explanation": _TIMED_OUT if row["verdict"] == TIMEOUT else None,
            "metadata": {"verdict": row["verdict"]},
            "history": [],
        }
        return {
            "id": row["problem_id"],
            "epoch": epoch,
            "input": question,
            "target": row["gold"],
            "messages": [{"id": f"{uid}-question", "content": question, "source": "input", "role": "user"}, answer],
            "output": {
                "model": self.model,
                "choices": [{"message": answer, "stop_reason": _STOP_REASONS.get(row["finish_reason"], "unknown")}],
                "completion": text,
                "usage": usage,
            },
            "scores": {OWN: score},
            "metadata": {name: value for name, value in problem.items() if name != "question" and value is not None},
            "store": {},
            "events": [],
            "model_usage": {self.model: usage},
            "uuid": uid,
            "attachments": {},
        }

    def _spec(self) -> Fields:
        about = self.evaluation
        source = {"model": about.source} if about.source is not None else {}
        return {
            "eval_id": about.identifier("eval"),
            "run_id": about.identifier("run"),
            "created": self._time(self.finished),
            "task": about.task,
            "task_id": about.identifier("task"),
            "task_version": 0,
            "task_args": {"iteration": about.iteration, "phase": about.phase, "run": about.run_id},
            "dataset": {
                "name": about.task,
                "samples": len(about.problem_ids),
                "sample_ids": about.problem_ids,
                "shuffled": False,
            },
            "model": self.model,
            "model_generate_config": self._generation(),
            "model_args": source,
            "config": {"epochs": self._epochs(), "epochs_reducer": ["mean"]},
            "packages": {OWN: about.version},
            "metadata": {OWN: about.origin},
            "scorers": [{"name": OWN, "metrics": [{"name": "accuracy"}, {"name": "stderr"}]}],
        }

    def _epochs(self) -> int:
        expected, num_problems = self.evaluation.num_expected, len(self.evaluation.problem_ids)
        return self.evaluation.figures.most_samples or (expected // num_problems if expected and num_problems else 1)

    def _generation(self) -> Fields:
        names = {"temperature": "temperature", "top_p": "top_p", "max_tokens": "max_new_tokens"}
        sampling = self.evaluation.sampling
        return {theirs: sampling[own] for theirs, own in names.items() if own in sampling}

    def _plan(self) -> Fields:
        step = {"solver": "generate", "params": {}, "params_passed": {}}
        return {"name": "plan", "steps": [step], "config": self._generation()}

    def _header(self) -> Fields:
        about, figures = self.evaluation, self.evaluation.figures
        metrics = {"accuracy": figures.pass_at_1, "stderr": figures.standard_error or 0.0}
        score = {
            "name": OWN,
            "scorer": OWN,
            "reducer": "mean",
            "scored_samples": len(figures.shares),
            "unscored_samples": 0,
            "params": {},
            "metrics": {name: {"name": name, "value": value, "params": {}} for name, value in metrics.items()},
        }
        return {
            "version": VERSION,
            # `started` would make the viewer wait for more.
            "status": "success" if about.is_complete else "cancelled",
            "eval": self._spec(),
            "plan": self._plan(),
            "results": {
                "total_samples": about.num_expected or figures.num_completions,
                "completed_samples": figures.num_completions,
                "scores": [score],
            },
            "stats": {
                "started_at": self._time(utc(about.started_s)),
                "completed_at": self._time(self.finished),
                "model_usage": {self.model: _usage(figures.num_prompt_tokens, figures.num_tokens)},
            },
        }


def _usage(num_prompt_tokens: int, num_tokens: int) -> Fields:
    return {
        "input_tokens": num_prompt_tokens,
        "output_tokens": num_tokens,
        "total_tokens": num_prompt_tokens + num_tokens,
    }


def _summary(sample: Fields) -> Fields:
    """The short form of a sample, without its conversation."""
    kept = {name: sample[name] for name in ("id", "epoch", "metadata", "scores", "model_usage", "uuid")}
    short = {name: sample[name][:_MAX_SUMMARY_CHARS] for name in ("input", "target")}
    return {**kept, **short, "completed": True, "message_count": len(sample["messages"])}


def own_fields(sample: Fields, log: Fields) -> Fields:
    """The fields of a line (`exchange/lines.py`) that only a log of core_hpc has; empty for others.

    Args:
        sample: of the log.
        log: its header.
    """
    metadata = (log.get("eval") or {}).get("metadata") or {}
    score = (sample.get("scores") or {}).get(OWN)
    if OWN not in metadata or score is None or (score.get("metadata") or {}).get("verdict") not in VERDICTS:
        return {}
    verdict, known = score["metadata"]["verdict"], sample.get("metadata") or {}
    return {
        "model": metadata[OWN]["model"],
        "phase": metadata[OWN]["phase"],
        "gold": sample["target"] or None,
        "answer": score.get("answer"),
        "verdict": verdict,
        "correct": verdict == CORRECT,
        **{name: known.get(name) for name in ("answer_kind", *ATTRIBUTES)},
    }
