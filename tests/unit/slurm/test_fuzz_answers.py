"""Whatever SLURM prints: a right answer, or a SlurmUnavailableError, and never another exception."""

from __future__ import annotations

import contextlib
import math

from hypothesis import assume, example, given
from hypothesis import strategies as st

from core_hpc.slurm.commands import SlurmUnavailableError
from core_hpc.slurm.parse import (
    expand_indices,
    parse_accounting,
    parse_associations,
    parse_config,
    parse_minutes,
    parse_partitions,
    parse_queue,
)
from core_hpc.slurm.sbatch import RefusedError, job_of
from tests.support.slurm_commands import HEADER, squeue_record

ACCOUNTING = (
    "5439905_1|FAILED|3:0|b1|1795438931|1795438931\n5439906_[0-1,7-9:2%3]|PENDING|0:0|None assigned|Unknown|Unknown\n"
    "5439923|CANCELLED by 0|0:0|None assigned|1795439178|1795439178\n"
)
QUEUE = HEADER + "".join(
    squeue_record(str(100 + i), index, state, "None", "0", "b1", name)
    for i, (index, state, name) in enumerate([("2", "CANCELLED", "a|b"), ("N/A", "PENDING", ""), ("0", "RUNNING", "c")])
)
PARTITIONS = "PartitionName=gpu Default=YES QoS=x MaxTime=2-00:00:00 PreemptMode=OFF GraceTime=5 State=UP\n"
NODES = "gpu|gpu:a100:4(S:0-1)|64|512000+\n"
ASSOCIATIONS = "root||normal,tight||77|1000\nroot|gpu|normal|normal||\n"
CONFIG = "MaxArraySize            = 20001\nMinJobAge               = 300 sec\n"
SEPARATORS = "|\x1f\x1e\n=:_[]-,%+ 0123456789Aa"
TEXT = st.text(alphabet=st.one_of(st.sampled_from(SEPARATORS), st.characters(exclude_categories=["Cs"])), max_size=60)


@st.composite
def changed(draw: st.DrawFn, text: str) -> str:
    """A text in which some places were replaced, as after a transfer that went wrong."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 12)))
        text = text[:start] + draw(TEXT) + text[end:]
    return text


@given(st.one_of(TEXT, changed(QUEUE)))
@example("")
@example(HEADER + "1\x1f" + "9" * 5000)
@example(HEADER + squeue_record("²", "N/A", "RUNNING", "None", "0", "b1", "x"))
def test_the_queue_is_understood_or_not(text: str) -> None:
    with contextlib.suppress(SlurmUnavailableError):
        for entry in parse_queue(text):
            assert entry.id.job >= 0
            assert entry.state.replace("_", "").isalpha()


@given(st.integers(0, len(QUEUE)))
def test_a_queue_that_is_cut_off_never_hides_a_job(length: int) -> None:
    """A cut at the end of a record cannot be recognised. Every other cut is an error."""
    try:
        entries = parse_queue(QUEUE[:length])
    except SlurmUnavailableError:
        return
    assert QUEUE[:length].endswith("\x1e\n")
    assert entries == parse_queue(QUEUE)[: len(entries)]


@given(st.one_of(TEXT, changed(ACCOUNTING)), changed(PARTITIONS), changed(NODES), TEXT)
@example("9" * 5000 + "|FAILED|3:0|b1|1|1", PARTITIONS, NODES, "")
@example("1|" + " |1:0|b1|1|1", PARTITIONS, NODES, "")
@example("1_[0-999999999]|PENDING|0:0|b|1|1", PARTITIONS, NODES, "")
@example("1_[0-9:0]|PENDING|0:0|b|1|1", PARTITIONS, NODES, "")
def test_other_answers_are_read_without_an_exception(accounting: str, partitions: str, nodes: str, text: str) -> None:
    for entry in parse_accounting(accounting).values():
        assert entry.state.replace("_", "").isalpha()
    for partition in parse_partitions(partitions, nodes, "preempt/partition_prio").values():
        assert partition.time_limit_min is None or math.isfinite(partition.time_limit_min)
    parse_associations(accounting)
    parse_config(partitions)
    parse_minutes(text)
    assert len(list(zip(expand_indices(text), range(10), strict=False))) <= 10
    RefusedError(text)
    job = job_of(text)
    assert job is None or f"Submitted batch job {job}" in text


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=80))
def test_a_notice_before_an_answer_changes_nothing(notice: str) -> None:
    line = f"{notice}\n"
    assert parse_queue(line + QUEUE) == parse_queue(QUEUE)
    assert job_of(f"{line}Submitted batch job 77\n") == 77 or job_of(line) is not None
    assume(notice.count("|") not in (3, 5))  # the form of a row
    assert parse_accounting(line + ACCOUNTING) == parse_accounting(ACCOUNTING)
    assert parse_associations(line + ASSOCIATIONS) == parse_associations(ASSOCIATIONS)
    assume("=" not in notice)
    assert parse_config(line + CONFIG) == parse_config(CONFIG)
    assert parse_partitions(line + PARTITIONS, line + NODES, "") == parse_partitions(PARTITIONS, NODES, "")
