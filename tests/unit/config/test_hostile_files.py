"""Hostile sweep files end soon, with an error for the user."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from core_hpc import launch
from core_hpc.common.errors import ConfigError, InputError
from core_hpc.config.cluster import ClusterSection
from core_hpc.config.yaml_text import MAX_BYTES, MAX_DEPTH, MAX_VALUES, parse_yaml
from core_hpc.runs.graph import Graph
from core_hpc.runs.sweep import load_sweep
from core_hpc.slurm.submit import batch_script, job_parameters
from tests.unit.config.test_sweep import mistakes, write

SOON_S = 30.0
"""Far more than any of these files needs on a busy machine (the slowest, a large file, about 5 s)."""


def bomb(levels: int) -> str:
    """Ten aliases on each level, so the last one stands for 10 ** levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


def doubling(levels: int) -> str:
    """Two aliases on each level, in mappings."""
    lines = ["b0: &b0 {k: v}"]
    return "\n".join(lines + [f"b{i}: &b{i} {{x: *b{i - 1}, y: *b{i - 1}}}" for i in range(1, levels)])


HOSTILE: dict[str, tuple[str, str]] = {
    "anchors": (bomb(9), f"more than {MAX_VALUES:,} values, counting aliases"),
    "anchors in mappings": (doubling(35), "more than 200,000 values"),
    "an alias of itself": ("a: &a [1, *a]", "stands for something that contains it"),
    "list as key": ("? [a, b]\n: 1", "a key must be a word or a number"),
    "mapping as key": ("{{a: 1}: 2}", "a key must be a word or a number"),
    "deep lists": ("a: " + "[" * 5000 + "]" * 5000, f"more than {MAX_DEPTH} mappings or lists"),
    "deep mappings": ("{a: " * 3000 + "1" + "}" * 3000, f"more than {MAX_DEPTH} mappings or lists"),
    "deep blocks": ("\n".join(" " * i + "a:" for i in range(500)), f"more than {MAX_DEPTH} mappings or lists"),
    "long integer": ("iterations: " + "9" * 5000, "a whole number of 5,000 characters"),
    "long hexadecimal integer": ("iterations: 0x" + "f" * 5000, "a whole number of 5,002 characters"),
    "month 13": ("name: 2026-13-45", "a value cannot be read"),
    "large": ("a: b\n" * 200_000, f"more than the limit of {MAX_BYTES:,}"),
    "many keys": ("".join(f"k{i}: {i}\n" for i in range(20_000)), "unknown key"),
    "nul": ("name: a\0b", "not valid YAML"),
    "binary": ("name: !!binary 'x'", "not valid YAML"),
    "python object": ("name: !!python/object/apply:os.system [date]", "not valid YAML"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_ends_soon_with_an_error_for_the_user(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, expected = HOSTILE[name]
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    started = time.process_time()
    assert launch.main([str(path)]) == InputError.exit_code
    assert time.process_time() - started < SOON_S
    assert expected in " ".join(capsys.readouterr().err.split())


def test_a_file_that_never_ends_is_not_read(tmp_path: Path) -> None:
    for path in (Path("/dev/zero"), tmp_path / "fifo"):
        if not path.exists():
            os.mkfifo(path)
        with pytest.raises(ConfigError, match="not an ordinary file"):
            load_sweep(path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"iterations": 10_000_000},
            "iterations: 10,000,000 iterations of 1 part(s) and 2 model(s) are 80,000,000 tasks",
        ),
        ({"iterations": 10**30}, "more than the limit of 1,000,000 per run"),
        ({"protocol": {"problems_per_iteration": 10**12}}, "more than the limit of 1,000,000 per run"),
        (
            {"problems": {name: {"source": "generated", "count": 10**10} for name in ("train", "evaluation")}},
            "problems.train.count: input should be less than or equal to 1000000",
        ),
        ({"grid": {f"reward.x{i}": list(range(10)) for i in range(12)}}, "grid: gives 1000000000000 runs"),
        ({"runs": [{".".join("a" * 5000): 1}]}, "a path of more than 20 parts"),
    ],
)
def test_numbers_far_too_large_are_refused_soon(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    started = time.process_time()
    found = mistakes(tmp_path, **changes)
    assert time.process_time() - started < SOON_S
    assert expected in "\n".join(found)


def test_many_files_that_inherit_from_each_other_are_refused(tmp_path: Path) -> None:
    for i in range(1000):
        (tmp_path / f"{i}.yaml").write_text(f"base: {i + 1}.yaml\n")
    with pytest.raises(ConfigError, match="more than 20 files inherit from each other"):
        load_sweep(tmp_path / "0.yaml")


def test_lists_of_bases_that_double_with_every_file_are_refused(tmp_path: Path) -> None:
    for i in range(19):
        (tmp_path / f"{i}.yaml").write_text(f"base: [{i + 1}.yaml, {i + 1}.yaml]\n")
    (tmp_path / "19.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match="more than 20 files inherit from each other"):
        load_sweep(tmp_path / "0.yaml")


def test_what_is_far_from_the_limits_is_read(tmp_path: Path) -> None:
    """Aliases, long grids and a large run are useful."""
    assert parse_yaml("a: &a {x: [1, 2]}\nb: *a\nc: [*a, *a]") == {
        "a": {"x": [1, 2]},
        "b": {"x": [1, 2]},
        "c": [{"x": [1, 2]}] * 2,
    }
    runs = [{"label": f"r{i}", "seed": i} for i in range(500)]
    assert len(load_sweep(write(tmp_path, runs=runs)).runs) == 500
    assert load_sweep(write(tmp_path, iterations=100_000)).runs[0].config.iterations == 100_000


@pytest.mark.parametrize("every", [0, 1, 3])
@pytest.mark.parametrize("before", [True, False])
def test_evaluations_of_a_graph(every: int, before: bool) -> None:
    graph = Graph(
        models=("a",),
        iterations=7,
        num_parts=1,
        num_evaluation_parts=1,
        evaluate_every=every,
        evaluate_before=before,
        has_rescue=False,
    )
    later = {0: [7], 1: list(range(1, 8)), 3: [3, 6, 7]}[every]
    assert graph.evaluated() == ([0] if before else []) + later
    assert sorted({key.iteration for key in graph.tasks() if key.phase == "evaluate"}) == graph.evaluated()


# --- lines of batch scripts ----------------------------------------------------------------------

INJECTED = "x\ntouch /tmp/injected"
ONE_LINE_FIELDS: list[dict[str, Any]] = [
    {"account": "TEXT"},
    {"partition": "TEXT"},
    {"qos": "TEXT"},
    {"constraint": "TEXT"},
    {"reservation": "TEXT"},
    {"gres": "TEXT"},
    {"python": "TEXT"},
    {"exclude": ["TEXT"]},
    {"srun_args": ["TEXT"]},
    {"options": {"mail-user": "TEXT"}},
    {"options": {"TEXT": "x"}},
    {"generate": {"account": "TEXT"}},
    {"resident": {"options": {"comment": "TEXT"}}},
    {"controller": {"gres": "TEXT"}},
]
"""Sections `slurm` with text in one field."""


@pytest.mark.parametrize("section", ONE_LINE_FIELDS, ids=str)
@pytest.mark.parametrize("text", [INJECTED, "x\rtouch y", "x\0y", "x\x1b[2J", "x\u2028y"])
def test_a_line_break_in_the_cluster_section_is_a_mistake(section: dict[str, Any], text: str, tmp_path: Path) -> None:
    slurm = json.loads(json.dumps(section).replace('"TEXT"', json.dumps(text)))
    cluster = {"driver": "arrays", "slurm": slurm}
    (found,) = mistakes(tmp_path, cluster=cluster)
    assert "has a line break or another control character" in found
    assert found.startswith("cluster.slurm.")
    assert text not in found


@pytest.mark.parametrize("name", ["mail type", "comment=x --wrap", "-n", "", "a'b"])
def test_an_option_has_the_form_of_a_long_option(name: str, tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, cluster={"driver": "arrays", "slurm": {"options": {name: "x"}}})
    assert "is not the long name of an sbatch option" in found


def test_an_option_must_not_change_the_elements_of_an_array(tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, cluster={"driver": "arrays", "slurm": {"update": {"options": {"array": "1-3"}}}})
    assert found.startswith("cluster.slurm.update.options: array: jobs have the array elements")


@pytest.mark.parametrize("name", ["clusters", "cluster", "clus", "M"])
def test_an_option_must_not_send_jobs_to_another_cluster(name: str, tmp_path: Path) -> None:
    """sbatch takes every beginning of a long option. The other commands would ask this cluster about the jobs."""
    (found,) = mistakes(tmp_path, cluster={"driver": "arrays", "slurm": {"options": {name: "other"}}})
    assert found.startswith(f"cluster.slurm.options: {name!r}: jobs run on the cluster")
    assert "start the sweep on a login node of the other cluster" in found


def test_setup_may_have_several_lines_but_no_other_control_characters(tmp_path: Path) -> None:
    lines = ["module load x\nmodule load y", "if true; then\n\techo yes\nfi"]
    slurm = {"driver": "arrays", "slurm": {"setup": lines}}
    (run,) = load_sweep(write(tmp_path, cluster=slurm)).runs
    assert run.config.cluster.slurm.setup == lines
    (found,) = mistakes(tmp_path, cluster={"driver": "arrays", "slurm": {"setup": ["a\0b"]}})
    assert found.startswith("cluster.slurm.setup:")


def test_line_breaks_in_folders_are_refused(tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, output=INJECTED)
    assert found.startswith("output:")
    cluster = ClusterSection(driver="arrays")
    parameters = job_parameters(cluster, "score", name="n", comment="c")
    with pytest.raises(InputError, match="has a line break"):
        batch_script(cluster, tmp_path / INJECTED, parameters, num_elements=1)
