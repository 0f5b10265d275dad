"""A process that generates problems with reasoning-gym, so `generators.py` need not import it.

In (standard input): {"task", "options", "seed", "count", "taken"}.
Out (standard output): {"items": [...]}, with fewer than `count` items if the task repeats itself,
or {"error": text}. The scorers of reasoning-gym are not used; answers are verified like all others.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import sys
from typing import Any

MAX_ROUNDS = 20


def make(task: str, options: dict[str, Any], seed: int, count: int, taken: set[str]) -> dict[str, Any]:
    """Up to `count` problems whose questions differ from each other and from `taken`."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        similar = ", ".join(difflib.get_close_matches(task, DATASETS, n=3))
        advice = f"similar names: {similar}" if similar else "see the documentation of reasoning-gym for the names"
        return {"error": f"there is no such task; {advice}"}
    items: list[dict[str, Any]] = []
    for part in range(MAX_ROUNDS):
        # Problem i of a data set has the data set's seed plus i, so these rounds form one long data
        # set.
        data_set = reasoning_gym.create_dataset(task, seed=seed + part * count, size=count, **options)
        for index in range(count):
            made = data_set[index]
            question, answer = made["question"].strip(), made["answer"]
            if len(items) < count and question not in taken and answer is not None:
                taken.add(question)
                solution = made["metadata"].get("answer_cot")
                items.append(
                    {
                        "question": question,
                        "answer": str(answer),
                        "index": part * count + index,
                        "category": data_set.category,
                        "solution": solution if isinstance(solution, str) else None,
                    }
                )
        if len(items) == count:
            break
    return {"items": items}


def main() -> int:
    request = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):  # some tasks print
        try:
            answer = make(request["task"], request["options"], request["seed"], request["count"], set(request["taken"]))
        except Exception as e:  # noqa: BLE001 - each of a hundred tasks rejects options in its own way
            answer = {"error": f"{type(e).__name__}: {e}"}
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
