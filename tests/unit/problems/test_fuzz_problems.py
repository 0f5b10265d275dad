"""Problem files of users, altered at random: an error that names the file, or problems that can be used."""

from __future__ import annotations

import json
import math
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core_hpc.common.errors import InputError
from core_hpc.problems.files import MAX_DEPTH, depth_of, own_row, read_items
from tests.support.alterations import altered_bytes, altered_json

ROWS = [
    {"id": f"p{i}", "question": f"What is {i} + 1?", "answer": str(i + 1), "answer_kind": "number", "subject": "sums"}
    for i in range(4)
]


def written(folder: Path, container: str) -> Path:
    path = folder / f"problems.{container}"
    if container == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)))
    elif container == "csv":
        pl.DataFrame(ROWS).write_csv(path)
    else:
        pl.DataFrame(ROWS).write_parquet(path)
    return path


@pytest.mark.parametrize("container", ["jsonl", "csv", "parquet"])
def test_an_altered_file_gives_usable_problems_or_an_error_that_names_it(container: str, tmp_path: Path) -> None:
    path = written(tmp_path, container)
    content = path.read_bytes()

    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def alter(data: st.DataObject) -> None:
        if container == "jsonl" and data.draw(st.booleans()):
            lines = content.splitlines()
            number = data.draw(st.integers(0, len(lines) - 1))
            lines[number] = data.draw(altered_json(lines[number]))
            path.write_bytes(b"\n".join(lines))
        else:
            path.write_bytes(data.draw(altered_bytes(content)))
        error, items = "", []
        try:
            items = read_items(path, container, own_row("number"))
        except InputError as e:
            error = str(e)
        if error:
            assert str(path) in error, f"the error does not name the file: {error}"
            return
        assert len({item.problem_id for item in items}) == len(items) > 0
        for item in items:
            assert item.question.strip()
            assert item.question.encode()
            assert depth_of(item.metadata) <= MAX_DEPTH
            json.dumps(item.metadata, allow_nan=False)
            if item.answer_kind == "number":
                assert math.isfinite(float(item.gold))

    alter()
