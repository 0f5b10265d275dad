r"""Published data sets: their hub repositories, pinned commits and row formats.

In: a `DataSetProblems` section. Out: `Item`s. Only the process that prepares a run accesses the hub
(the launcher on a login node). Tasks never do; they read the splits that are frozen in the run
folder. After the first download, a pinned commit is read from the cache of huggingface.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core_hpc.answers.extract import BOX, closing_brace
from core_hpc.answers.kinds import LETTERS
from core_hpc.common.errors import InputError
from core_hpc.common.hub import why_no_hub
from core_hpc.common.seeds import stable_seed
from core_hpc.config.problems import DataSetProblems
from core_hpc.problems.files import Item, Row, RowError, gold_of, plain_metadata, read_items, text_field


@dataclass(frozen=True)
class HubFiles:
    """Files of a hub repository at a commit, per split.

    By default the first split is used for training and the last one for evaluation.
    """

    repository: str
    revision: str
    splits: dict[str, tuple[str, ...]]


def _parquet(*splits: str, folder: str = "data") -> dict[str, tuple[str, ...]]:
    return {split: (f"{folder}/{split}-00000-of-00001.parquet",) for split in splits}


_GPQA = ("Idavidrein/gpqa", "633f5ee89ab8ad4522a9f850766b73f62147ffdd")
HUB: dict[str, dict[str, HubFiles]] = {
    "gsm8k": {
        "main": HubFiles(
            "openai/gsm8k", "740312add88f781978c0658806c59bc2815b9866", _parquet("train", "test", folder="main")
        )
    },
    "math": {
        "full": HubFiles(
            "DigitalLearningGmbH/MATH-lighteval", "f06834690385b29df31ccc717250746a3ba0322b", _parquet("train", "test")
        ),
        "math-500": HubFiles(
            "HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", {"test": ("test.jsonl",)}
        ),
    },
    "aime": {
        "1983-2024": HubFiles(
            "gneubig/aime-1983-2024",
            "5d610df981dec508dd93d0a16333a029ac1739d8",
            {"train": ("AIME_Dataset_1983_2024.csv",)},
        ),
        "2024": HubFiles("HuggingFaceH4/aime_2024", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a", _parquet("train")),
        "2025": HubFiles("math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b", {"test": ("test.jsonl",)}),
    },
    "gpqa": {name: HubFiles(*_GPQA, {"train": (f"gpqa_{name}.csv",)}) for name in ("main", "diamond", "extended")},
    "medmcqa": {
        "all": HubFiles(
            "openlifescienceai/medmcqa", "91c6572c454088bf71b679ad90aa8dffcd0d5868", _parquet("train", "validation")
        ),
    },
}
"""Source -> subset -> files; the first subset is the default."""

_CONTAINERS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}


def mistakes_in(source: DataSetProblems) -> list[tuple[str, str]]:
    """(field, message) for a subset or split that the data set does not have. Needs no network."""
    if source.path is not None or source.repository is not None:
        return []
    subsets = HUB[source.source]
    subset = source.subset or next(iter(subsets))
    if subset not in subsets:
        return [("subset", f"unknown subset {subset!r}; {source.source} has {', '.join(subsets)}")]
    if source.split is not None and source.split not in subsets[subset].splits:
        known = ", ".join(subsets[subset].splits)
        return [("split", f"unknown split {source.split!r}; {subset} of {source.source} has {known}")]
    return []


def read_data_set(source: DataSetProblems, label: str) -> list[Item]:
    """All problems of a source for the split `label` (train or evaluation) of the run.

    Raises:
        InputError: a file or some of its rows cannot be used; the message names them.
    """
    if source.path is not None:
        path = Path(source.path).expanduser()
        return _read(path, source, path.stem)
    if source.repository is not None:
        hub = HubFiles(source.repository, source.revision or "", {"": tuple(source.files or ())})
        split = ""
    else:
        hub = HUB[source.source][source.subset or next(iter(HUB[source.source]))]
        split = source.split or list(hub.splits)[0 if label == "train" else -1]
    name = "-".join(filter(None, (source.subset, split))) or source.source
    names = [name] if len(hub.splits[split]) == 1 else [f"{name}-{i}" for i in range(len(hub.splits[split]))]
    items = [
        item for file, n in zip(hub.splits[split], names, strict=True) for item in _read(fetch(hub, file), source, n)
    ]
    twice = [name for name, times in Counter(i.problem_id for i in items).items() if times > 1]
    if twice:
        raise InputError(
            f"data set {hub.repository}: {len(twice)} id(s) are in more than one file, for example {twice[0]!r}"
        )
    return items


def _read(path: Path, source: DataSetProblems, name: str) -> list[Item]:
    parse = ROW_FORMATS[source.source]
    container = _CONTAINERS.get(path.suffix.lower())
    if container is None and path.is_file():
        known = ", ".join(_CONTAINERS)
        raise InputError(f"{path}: the format of a file is known by the ending of its name, one of {known}")
    return read_items(path, container or "jsonl", lambda row, number: parse(row, f"{name}-{number:05d}", source.seed))


def fetch(hub: HubFiles, file: str) -> Path:
    """The path of a hub file in the cache of huggingface; downloads the file if it is missing.

    Raises:
        InputError: the file cannot be downloaded; the message contains the command to run.
    """
    import huggingface_hub
    from huggingface_hub import errors

    why = why_no_hub()
    where = f"data set {hub.repository} at revision {hub.revision}"
    command = f"hf download {hub.repository} {file} --repo-type dataset --revision {hub.revision}"
    try:
        return Path(
            huggingface_hub.hf_hub_download(
                hub.repository, file, repo_type="dataset", revision=hub.revision, local_files_only=why is not None
            )
        )
    except errors.GatedRepoError as e:
        raise InputError(
            f"{where}: its owners require that you accept terms; do so on its hub page, then run: hf auth login"
        ) from e
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as e:
        raise InputError(
            f"{where}: {file} is not in the local cache, and {why or 'the hub cannot be reached'}; "
            f"run `{command}` on a machine with network access (and share HF_HOME), or set `path:` "
            "to a file of the same format"
        ) from e
    except (
        errors.EntryNotFoundError,
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.HFValidationError,
    ) as e:
        raise InputError(f"{where}: {file} does not exist: {str(e).splitlines()[0]}") from e
    except (errors.HfHubHTTPError, OSError) as e:
        raise InputError(f"{where}: {file} cannot be downloaded ({type(e).__name__}: {e}); run `{command}`") from e


# --- row formats ---------------------------------------------------------------------------------


def _gsm8k(row: Row, problem_id: str, seed: int) -> Item:
    solution, mark, final = text_field(row, "answer").rpartition("####")
    if not mark:
        raise RowError("'answer' has no '#### <number>' at its end")
    metadata = {"data_set": "gsm8k", "solution": f"{solution.strip()}\n#### {final.strip()}"}
    return Item(problem_id, text_field(row, "question"), gold_of(final, "number"), metadata)


def last_box(text: str) -> str | None:
    r"""Content of the last `\boxed{..}`, else the word after the last `\boxed`, else None.

    >>> last_box("\\boxed{1} or \\boxed{\\frac{1}{2}}, \\boxed{"), last_box("so $\\boxed 7$."), last_box("none")
    ('\\frac{1}{2}', '7', None)
    """
    found = [(m.end(), closing_brace(text, m.end(), len(text))) for m in re.finditer(rf"\\{BOX}", text)]
    closed = [text[start:end] for start, end in found if end >= 0]
    bare = re.findall(r"\\(?:boxed|fbox)\s+([^\s${}\\.,]+)", text)
    return (closed or bare or [None])[-1]


def _math(row: Row, problem_id: str, seed: int) -> Item:
    solution = text_field(row, "solution")
    answer = text_field(row, "answer") if "answer" in row else last_box(solution)
    if answer is None:
        raise RowError(r"'solution' has no \boxed{..}, and there is no 'answer'")
    level = None if row.get("level") is None else str(row["level"]).removeprefix("Level ")
    subject = row.get("subject", row.get("type"))
    metadata = {"data_set": "math", "subject": subject, "level": level, "solution": solution}
    name = text_field(row, "unique_id") if "unique_id" in row else problem_id
    return Item(name, text_field(row, "problem"), gold_of(answer, "latex"), plain_metadata(metadata), "latex")


def _aime(row: Row, problem_id: str, seed: int) -> Item:
    """The fields have different names in the collections: ID or id, Question or problem."""
    lower = {str(k).casefold(): v for k, v in row.items()}
    question = text_field(lower, "question" if "question" in lower else "problem")
    name = text_field(lower, "id") if "id" in lower else problem_id
    rest = {k: lower[k] for k in ("year", "part", "problem number", "url") if lower.get(k) is not None}
    gold = gold_of(text_field(lower, "answer"), "integer")
    return Item(name, question, gold, plain_metadata({"data_set": "aime", **rest}), "integer")


def _choice(
    problem_id: str, stem: str, options: Sequence[str], gold: str, *, explanation: Any, metadata: dict[str, Any]
) -> Item:
    """A question with lettered options.

    The order of the options does not make it a different problem.
    """
    if isinstance(explanation, str) and explanation.strip():
        metadata = {**metadata, "solution": f"{explanation.strip()}\n#### {gold}"}
    shown = "\n".join(f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
    identity = "\n".join([stem, *sorted(options)])
    return Item(problem_id, f"{stem}\n\n{shown}", gold, plain_metadata(metadata), "letter", identity)


def _gpqa(row: Row, problem_id: str, seed: int) -> Item:
    name = text_field(row, "Record ID") if "Record ID" in row else problem_id
    options = [text_field(row, field) for field in ("Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3)))]
    order = list(range(len(options)))
    random.Random(stable_seed(seed, "options", name)).shuffle(order)
    metadata = {
        "data_set": "gpqa",
        "subject": row.get("High-level domain"),
        "subdomain": row.get("Subdomain"),
        "level": row.get("Writer's Difficulty Estimate"),
    }
    shown, gold = [options[i] for i in order], LETTERS[order.index(0)]
    stem = text_field(row, "Question")
    return _choice(name, stem, shown, gold, explanation=row.get("Explanation"), metadata=metadata)


def _whole(value: Any) -> int | None:
    """A whole number, also as text (every field of a CSV file is text) or as a float; None for anything else.

    >>> [_whole(v) for v in (2, "2", 2.0, "-1", "2.0", 2.5, "x", True, None)]
    [2, 2, 2, -1, 2, None, None, None, None]
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    found = re.fullmatch(r"\s*(-?[0-9]{1,3})(?:\.0*)?\s*", str(value))
    return int(found[1]) if found is not None else None


def _medmcqa(row: Row, problem_id: str, seed: int) -> Item:
    right = _whole(row.get("cop"))
    if right == -1:
        raise RowError("its answer is withheld (cop is -1), as in the whole test split; use train or validation")
    if right is None or not 0 <= right <= 3:
        raise RowError(f"'cop' must be the number of the correct option, 0 to 3, not {row.get('cop')!r}")
    options = [text_field(row, field) for field in ("opa", "opb", "opc", "opd")]
    metadata = {"data_set": "medmcqa", "subject": row.get("subject_name"), "topic": row.get("topic_name")}
    name, stem = text_field(row, "id"), text_field(row, "question")
    return _choice(name, stem, options, LETTERS[right], explanation=row.get("exp"), metadata=metadata)


ROW_FORMATS: dict[str, Callable[[Row, str, int], Item]] = {
    "gsm8k": _gsm8k,
    "math": _math,
    "aime": _aime,
    "gpqa": _gpqa,
    "medmcqa": _medmcqa,
}
"""Source -> function of (row, id to use if the row has none, seed)."""
