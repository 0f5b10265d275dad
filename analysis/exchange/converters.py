"""The origins of predictions, and the conversion of a record of each.

In: a record of a file (`exchange/sources.py`), and the user's choices (`Origin`). Out: the fields of
one line per completion, or a ValueError that explains the mistake. `exchange/bridges.py` adds what
the user maps, the name of the model, and what is missing.

    jsonl    the two forms of `exchange/lines.py`, or any fields with a mapping
    lm-eval  `samples_TASK_DATE.jsonl` of lm-evaluation-harness (0.4), written with --log_samples
    inspect  a log of Inspect (inspect_ai 0.3): `.eval` or `.json`
    trl      `completions_STEP.parquet` of TRL's GRPOTrainer (1.16), written with log_completions
    verl     `STEP.jsonl` of verl (0.8), written with trainer.rollout_data_dir or validation_data_dir

The last four give one line per completion. A verdict of the other software is used. Without one, the
completion is verified here. Logs of Inspect and lm-evaluation-harness that core_hpc exported
(`exchange/logs.py`) give the same completions, verdicts and problems again.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.exchange import inspect_log, lm_eval
from analysis.exchange.sources import LOG
from core_hpc.answers.kinds import LETTERS

JSONL, LM_EVAL, INSPECT, TRL, VERL = "jsonl", "lm-eval", "inspect", "trl", "verl"
ORIGINS = (JSONL, LM_EVAL, INSPECT, TRL, VERL)
_LM_EVAL_FILE = re.compile(r"samples_(?P<task>.+)_\d{4}-\d\d-\d\dT[\d.-]+")
_TRL_FIELDS = frozenset({"mode", "step", "prompt", "completion", "advantage", "images"})
_QUESTIONS = ("question", "problem", "query", "input", "Question", "Problem")
"""Names under which tasks of lm-evaluation-harness have the question of a document."""
_VERDICTS = {"c": True, "i": False, "n": False}
"""Inspect's letters for correct, incorrect and no answer. P, for partly correct, is no verdict."""
_TRUNCATED = frozenset({"max_tokens", "model_length"})

Fields = dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """The user's choices about a file of predictions."""

    name: str = JSONL
    fields: Mapping[str, str] = field(default_factory=dict)  # our field -> path of theirs
    where: Mapping[str, str] = field(default_factory=dict)  # path of a field -> wanted value
    model: str | None = None  # the name of the model; None: the file has it

    @property
    def is_plain(self) -> bool:
        """Whether the records are lines already."""
        return self.name == JSONL and not self.fields and self.model is None

    @property
    def needs_verdict(self) -> bool:
        """Whether the verdict of the other software is used; a mapped gold answer is verified here."""
        return self.fields.keys().isdisjoint(("correct", "gold"))


def names_of(record: Fields) -> str:
    """The names of the fields of a record, for a message."""
    return ", ".join(str(key) for key in record if key != LOG)


def as_verdict(value: Any, name: str) -> bool | None:
    """Whether a verdict is correct; None stays None, and the completion is then verified here.

    >>> as_verdict(1.0, "acc"), as_verdict("I", "match")
    (True, False)

    Raises:
        ValueError: the value is not a verdict: neither yes or no, nor 0 or 1, nor C, I or N.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    text = str(value).strip().casefold()
    if text in _VERDICTS:
        return _VERDICTS[text]
    if text in ("true", "false"):
        return text == "true"
    raise ValueError(
        f"'{name}' is {reprlib.repr(value)}, which is no verdict (0 or 1, true or false, C or I); name the field of "
        "the verdict with --map correct=FIELD, or the gold answer with --map gold=FIELD to verify here"
    )


def text_of_messages(messages: list[Any]) -> str:
    """The text of a conversation without the messages of the system.

    A message has a `content`: text, or a list of parts of which those with a `text` count.
    """
    texts = []
    for message in messages:
        if isinstance(message, Mapping) and message.get("role") == "system":
            continue
        content = message.get("content", message.get("text")) if isinstance(message, Mapping) else message
        text = text_of_messages(content) if isinstance(content, list) else content
        if isinstance(text, str) and text:
            texts.append(text)
    return "\n\n".join(texts)


def final_answer(gold: Any) -> Any:
    """The answer of a worked solution that ends with `#### ANSWER`, as in GSM8K; else the same value.

    >>> final_answer("9 * 8 = 72\\n#### 72"), final_answer("72")
    ('72', '72')
    """
    return gold.rsplit("####", 1)[1].strip() if isinstance(gold, str) and "####" in gold else gold


def _required(record: Fields, names: tuple[str, ...], software: str, written: str) -> None:
    missing = [name for name in names if name not in record]
    if missing:
        known = names_of(record) or "none"
        raise ValueError(f"no field '{missing[0]}', so it is not of {software} ({written}); the record has {known}")


def _attributes(known: Mapping[str, Any]) -> Fields:
    """The subject and the level of a problem, as far as they are known."""
    return {name: known[name] for name in ("subject", "level") if isinstance(known.get(name), (str, int))}


# --- one converter per origin --------------------------------------------------------------------


def _from_jsonl(record: Fields, origin: Origin, file: Path) -> list[Fields]:
    """The record without the fields that are mapped to ours."""
    taken = {path.split(".")[0] for path in origin.fields.values()}
    return [{name: value for name, value in record.items() if name not in taken}]


def _from_lm_eval(record: Fields, origin: Origin, file: Path) -> list[Fields]:
    """One line per repeat. A record has one verdict, which holds for its only completion."""
    _required(record, ("doc_id", "doc", "target", "resps"), LM_EVAL, "samples_*.jsonl, written with --log_samples")
    requests = record["resps"]
    texts = requests[0] if isinstance(requests, list) and len(requests) == 1 else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            "'resps' has log-probabilities or several requests, so no completion was generated; use a task with "
            "output_type: generate_until"
        )
    own = lm_eval.own_lines(record)
    if own is not None and origin.needs_verdict:
        return own
    doc = record["doc"] if isinstance(record["doc"], Mapping) else {}
    question = next((doc[name] for name in _QUESTIONS if isinstance(doc.get(name), str)), None)
    named = _LM_EVAL_FILE.fullmatch(file.stem)
    common: Fields = {
        "problem": record["doc_id"],
        "model": file.absolute().parent.name,  # the software writes to a folder with the model's name
        "gold": final_answer(record["target"]),
        **({"question": question} if question else {}),
        **({"data_set": named["task"]} if named else {}),
        **_attributes(doc),
    }
    if len(texts) > 1:
        if "correct" in origin.fields:
            raise ValueError(
                f"{len(texts)} repeats, but their verdict is one for all; leave --map correct=... out, and the "
                "completions are verified here"
            )
        return [{**common, "sample": sample, "text": text} for sample, text in enumerate(texts)]
    line = {**common, "sample": 0, "text": texts[0] if texts else ""}
    if origin.needs_verdict:
        line["correct"] = _lm_eval_verdict(record)
    answers = record.get("filtered_resps")
    answer = answers[0] if isinstance(answers, list) and answers else None
    # Without a filter the "answer" is the completion; [invalid] is what a filter without a match gives.
    if isinstance(answer, str) and answer not in ("[invalid]", line["text"]):
        line["answer"] = answer
    return [line]


def _lm_eval_verdict(record: Fields) -> bool | None:
    names = [name for name in record.get("metrics") or [] if name in record]
    if len(names) == 1:
        return as_verdict(record[names[0]], names[0])
    if not names:
        return None
    raise ValueError(f"several metrics ({', '.join(names)}); choose the verdict with --map correct={names[0]}")


def _from_inspect(record: Fields, origin: Origin, file: Path) -> list[Fields]:
    _required(record, ("id", "epoch", "input", "target", "output"), INSPECT, "a log, .eval or .json")
    log, output, files = record[LOG], record["output"] or {}, record.get("attachments") or {}
    if record.get("error") and not record.get("scores"):
        raise ValueError(
            f"sample {record['id']!r}, epoch {record['epoch']}, stopped with an error; run `inspect eval-retry LOG`, "
            "and import the log of that"
        )

    def resolved(text: Any) -> Any:
        return files.get(text.removeprefix("attachment://"), text) if isinstance(text, str) else text

    choice = (output.get("choices") or [{}])[0]
    text = output.get("completion") or text_of_messages([choice.get("message", {})])
    asked = record["input"]
    if isinstance(asked, list):
        asked = text_of_messages(
            [{**m, "content": resolved(m.get("content"))} for m in asked if isinstance(m, Mapping)]
        )
    target = record["target"]
    gold = target[0] if isinstance(target, list) and len(target) == 1 else target
    metadata, usage = record.get("metadata") or {}, output.get("usage") or {}
    spec = log.get("eval") or {}
    line: Fields = {
        "problem": record["id"],
        "model": spec.get("model"),
        "sample": int(record["epoch"]) - 1,
        "text": resolved(text),
        "token_count": usage.get("output_tokens", 0),
        "truncated": choice.get("stop_reason") in _TRUNCATED,
        "data_set": (spec.get("dataset") or {}).get("name") or spec.get("task"),
        **_attributes(metadata),
    }
    if isinstance(asked, str) and resolved(asked).strip():
        line["question"] = resolved(asked)
    if isinstance(gold, str) and gold.strip():  # several targets are alternatives, none of which is the gold answer
        line["gold"] = final_answer(gold)
    if record.get("choices") and line.get("gold") in tuple(LETTERS):
        line["answer_kind"] = "letter"
    if origin.needs_verdict:
        line |= inspect_log.own_fields(record, log) or _inspect_score(record.get("scores") or {})
    return [line]


def _inspect_score(scores: Fields) -> Fields:
    if not scores:
        return {}
    if len(scores) > 1:
        first = next(iter(scores))
        raise ValueError(f"several scores ({', '.join(scores)}); choose with --map correct=scores.{first}.value")
    ((name, score),) = scores.items()
    found: Fields = {"correct": as_verdict(score.get("value"), f"scores.{name}.value")}
    if score.get("answer"):
        found["answer"] = score["answer"]
    return found


def _from_trl(record: Fields, origin: Origin, file: Path) -> list[Fields]:
    _required(record, ("step", "prompt", "completion"), TRL, "completions_*.parquet, written with log_completions")
    line: Fields = {"question": record["prompt"], "text": record["completion"]}
    if origin.needs_verdict:
        rewards = [
            name for name, value in record.items() if name not in _TRL_FIELDS and isinstance(value, (int, float))
        ]
        if len(rewards) != 1:
            found = f"several possible verdicts ({', '.join(rewards)})" if rewards else "no reward"
            raise ValueError(f"{found}; choose with --map correct=FIELD, or verify here with --map gold=FIELD")
        line["correct"] = record[rewards[0]]
    return [line]


def _from_verl(record: Fields, origin: Origin, file: Path) -> list[Fields]:
    _required(record, ("input", "output", "score"), VERL, "STEP.jsonl of rollout_data_dir or validation_data_dir")
    line: Fields = {"question": record["input"], "text": record["output"]}
    if isinstance(record.get("gts"), (str, int, float)):
        line["gold"] = final_answer(record["gts"])
    if origin.needs_verdict:
        # Some rewards are 1 and -1, and come with the verdict under the name acc.
        name = "acc" if record.get("acc") is not None else "score"
        line["correct"] = as_verdict(record[name], name)
    if isinstance(record.get("pred"), str) and record["pred"] != "[INVALID]":
        line["answer"] = record["pred"]
    return [line]


CONVERTERS: dict[str, Callable[[Fields, Origin, Path], list[Fields]]] = {
    JSONL: _from_jsonl,
    LM_EVAL: _from_lm_eval,
    INSPECT: _from_inspect,
    TRL: _from_trl,
    VERL: _from_verl,
}
