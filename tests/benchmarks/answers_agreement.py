"""Agreement of the verification with the gold answers of GSM8K, and its time per item.

In: `../shared/data/gsm8k/{train,test}.jsonl` next to the checkout, if present; otherwise the script
prints that it skips. Out: a table of checks with the number of false negatives (a right text that
does not verify) and false positives (a wrong number that verifies).

    python tests/benchmarks/answers_agreement.py [--data FOLDER]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

from core_hpc.answers.extract import extract_answer, normalize_number, verify_many
from core_hpc.store.schema import CORRECT

DATA = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
KINDS = ("number", "latex")
Check = tuple[str, str, str, bool]
"""(name of the check, text, gold answer, whether the text is right)"""

# How a text states a number.
FORMS: dict[str, Callable[[str], str]] = {
    "####": lambda n: f"so it is\n#### {n}",
    "box": lambda n: rf"Therefore $\boxed{{{n}}}$.",
    "sentence": lambda n: f"The answer is {n} dollars.",
}


def near(gold: str) -> Iterator[tuple[str, str]]:
    """Different numbers that are close to the gold answer: (name, number)."""
    value = Fraction(gold)
    digits = gold.lstrip("-")
    swapped = digits[1] + digits[0] + digits[2:] if len(digits) > 1 and digits[:2].isdigit() else digits
    changed = {
        "+1": value + 1,
        "-1": value - 1,
        "x10": value * 10,
        "/10": value / 10,
        "x1000": value * 1000,
        "negative": -value,
        "half": value / 2,
        "digits swapped": Fraction(swapped) * (-1 if value < 0 else 1),
    }
    for name, other in changed.items():
        text = normalize_number(str(other))
        if text is not None and other != value:
            yield name, text


def checks(rows: list[dict[str, str]]) -> Iterator[Check]:
    for row in rows:
        solution, _, last = row["answer"].rpartition("####")
        gold = normalize_number(last)
        if gold is None:
            raise ValueError(f"no gold answer in {row['answer'][-80:]!r}")
        yield "gold against itself", f"#### {last.strip()}", gold, True
        yield "own solution", row["answer"], gold, True
        yield "own solution, then a check", f"{row['answer']}\nCheck the answer: {gold} - 1 = 0", gold, True
        yield "solution without ####", solution, gold, False
        for form, write in FORMS.items():
            yield f"right, {form}", write(f"{int(gold):,}" if gold.lstrip("-").isdigit() else gold), gold, True
            yield f"negated, {form}", write(f"not {gold}"), gold, False
            for name, number in near(gold):
                yield f"wrong ({name}), {form}", write(number), gold, False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with train.jsonl and test.jsonl")
    folder = parser.parse_args().data
    files = [path for path in (folder / "train.jsonl", folder / "test.jsonl") if path.exists()]
    if not files:
        print(f"{folder} has no train.jsonl or test.jsonl; skipped")
        return
    rows = [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    for kind in KINDS:
        items = list(checks(rows))
        start = time.process_time()
        claims = [(extract_answer(text, kind), gold, kind) for _, text, gold, _ in items]
        extraction = time.process_time() - start
        verdicts = verify_many(claims)
        table: dict[str, list[int]] = {}
        for (name, _, _, right), verdict in zip(items, verdicts, strict=True):
            cell = table.setdefault(name, [0, 0, 0])
            cell[0] += 1
            cell[1] += right and verdict != CORRECT
            cell[2] += not right and verdict == CORRECT
        print(
            f"\nkind {kind}: {len(rows):,} problems, {len(items):,} texts, {extraction / len(items) * 1e6:.1f} us each"
        )
        print(f"{'check':38s} {'texts':>7s} {'false negatives':>16s} {'false positives':>16s}")
        for name, (num, missed, accepted) in table.items():
            print(f"{name:38s} {num:7,d} {missed:16,d} {accepted:16,d}")
        print(f"{'total':38s} {len(items):7,d} {sum(c[1] for c in table.values()):16,d} ", end="")
        print(f"{sum(c[2] for c in table.values()):16,d}")


if __name__ == "__main__":
    main()
