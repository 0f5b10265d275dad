"""How often the gold answer stands in a hint, before and after `protocol.hint_leak`.

    python -m tests.benchmarks.hint_leaks [--data FILE]

The teachers' texts are the solutions of GSM8K, by default `../shared/data/gsm8k/test.jsonl` next to
the checkout. The table has one row per style and treatment: the share of problems with a hint, and
of these hints how they show the gold answer (`schema.LEAKS`), and whether the last number is the
gold answer. The hints of the treatments `cut` and `reject` are the ones that a student would see. A
token is a word here, so that no tokenizer is needed; GSM8K solutions are shorter than a hint may
be.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from core_hpc.answers.numbers import normalize_number
from core_hpc.protocol.hints import make_hint, treat_leak
from core_hpc.protocol.leaks import leak_of, values_of
from core_hpc.store.schema import LEAKS

DATA = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "test.jsonl"
STYLES = ("full", "compressed")
TREATMENTS = ("keep", "cut", "reject")
_ANNOTATION = re.compile(r"<<[^<>\n]*>>")


def solutions(path: Path) -> list[tuple[str, str]]:
    """(solution without calculator annotations, gold answer) of each problem."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = _ANNOTATION.sub("", json.loads(line)["answer"])
        found.append((text, normalize_number(text.rpartition("####")[2]) or ""))
    return found


def hints(problems: Sequence[tuple[str, str]], style: str, treatment: str) -> list[tuple[str, str, bool]]:
    """(hint, leak, whether its last number is the gold answer) of each problem that has a hint."""
    found = []
    for text, gold in problems:
        words: list[str] = []

        def tokenize(piece: str, words: list[str] = words) -> list[int]:
            words[:] = re.findall(r"\s*\S+|\s+$", piece)
            return list(range(len(words)))

        def detokenize(ids: Sequence[int], words: list[str] = words) -> str:
            return "".join(words[i] for i in ids)

        hint = make_hint(text, gold, "number", tokenize, detokenize, 1536, style=style)
        hint = None if hint is None else treat_leak(hint, gold, "number", treatment)
        if hint is not None:
            values = values_of(hint, gold, "number")
            found.append((hint, leak_of(hint, gold, "number"), bool(values) and values[-1].is_gold))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    path = parser.parse_args(arguments).data
    if not path.is_file():
        print(f"skipped: {path} does not exist; name the file test.jsonl of GSM8K with --data")
        return
    problems = solutions(path)
    print(f"{len(problems)} problems of {path}; leaks in percent of the hints")
    columns = (*LEAKS, "last")
    print(f"{'style':<12}{'treatment':<11}{'hints %':>8}{'words':>7}" + "".join(f"{name:>10}" for name in columns))
    for style in STYLES:
        for treatment in TREATMENTS:
            shown = hints(problems, style, treatment)
            counts = Counter(leak for _, leak, _ in shown)
            counts["last"] = sum(is_last for *_, is_last in shown)
            words = sum(len(hint.split()) for hint, *_ in shown) / max(1, len(shown))
            cells = "".join(f"{100 * counts[name] / max(1, len(shown)):>10.1f}" for name in columns)
            print(f"{style:<12}{treatment:<11}{100 * len(shown) / len(problems):>8.1f}{words:>7.1f}{cells}")


if __name__ == "__main__":
    main(sys.argv[1:])
