"""Limits per job, which never pass, and other limits, which do. The names are those of SLURM 22.05."""

from __future__ import annotations

import pytest

from core_hpc.slurm.parse import JobId, Place, QueueEntry
from core_hpc.slurm.reasons import correction, why_never
from core_hpc.slurm.sbatch import RefusedError

LOWER = {
    "time_min": "QOSMaxWallDurationPerJobLimit AssocMaxWallDurationPerJobLimit",
    "cpus": "QOSMaxCpuPerJobLimit QOSMaxCpuPerNode AssocMaxCpuPerJobLimit AssocMaxCpuPerNode",
    "gpus_per_node or gres": "QOSMaxGRESPerJob QOSMaxGRESPerNode AssocMaxGRESPerJob AssocMaxGRESPerNode",
    "mem_gb": "MaxMemPerLimit QOSMaxMemoryPerJob QOSMaxMemoryPerNode AssocMaxMemPerJob AssocMaxMemPerNode",
    "update.nodes": "QOSMaxNodePerJobLimit AssocMaxNodePerJobLimit",
    "cpus or time_min": "QOSMaxCpuMinutesPerJobLimit AssocMaxCpuMinutesPerJobLimit",
    "gpus_per_node or gres or time_min": "QOSMaxGRESMinutesPerJob AssocMaxGRESMinutesPerJob",
    "mem_gb or time_min": "QOSMaxMemoryMinutesPerJob AssocMaxMemMinutesPerJob",
    "update.nodes or time_min": "QOSMaxNodeMinutesPerJob AssocMaxNodeMinutesPerJob",
    "what jobs ask for": "QOSMaxBillingPerJob QOSMaxBBPerNode AssocMaxLicensePerJob AssocMaxUnknownPerNode",
    "what jobs ask for or time_min": "QOSMaxBillingMinutesPerJob AssocMaxEnergyMinutesPerJob",
}
RAISE = {
    "cpus": "QOSMinCpuNotSatisfied",
    "gpus_per_node or gres": "QOSMinGRES",
    "mem_gb": "QOSMinMemory",
    "update.nodes": "QOSMinNode",
    "what jobs ask for": "QOSMinBilling QOSMinUnknown",
}
PER_JOB = {
    name: f"{verb} {fields} in the cluster profile"
    for verb, table in (("lower", LOWER), ("raise", RAISE))
    for fields, names in table.items()
    for name in names.split()
}
OF_SEVERAL_JOBS = {
    "a group": "AssocGrpCpuLimit AssocGrpCPURunMinutesLimit AssocGrpGRES AssocGrpMemLimit AssocGrpNodeLimit "
    "AssocGrpSubmitJobsLimit AssocGrpWallLimit QOSGrpCpuLimit QOSGrpGRES QOSGrpJobsLimit QOSGrpMemLimit "
    "QOSGrpNodeMinutes QOSGrpSubmitJobsLimit QOSGrpWallLimit",
    "an account": "MaxCpuPerAccount MaxGRESPerAccount MaxJobsPerAccount MaxMemoryPerAccount MaxSubmitJobsPerAccount",
    "a user": "AssocMaxJobsLimit AssocMaxSubmitJobLimit QOSMaxCpuPerUserLimit QOSMaxGRESPerUser "
    "QOSMaxJobsPerUserLimit QOSMaxMemoryPerUser QOSMaxNodePerUserLimit QOSMaxSubmitJobPerUserLimit",
    "any": "QOSJobLimit QOSUsageThreshold JobArrayTaskLimit Priority Resources Dependency",
}
PASSING = [name for names in OF_SEVERAL_JOBS.values() for name in names.split()]
REFUSAL = (
    "sbatch: error: {} sbatch: error: Batch job submission failed: Job violates accounting/QOS policy "
    "(job submit limit, user's size and/or time limits)"
)


def waiting(reason: str, place: Place) -> QueueEntry:
    return QueueEntry(JobId(7), "cold-0001", "PENDING", reason, "", 0, place)


@pytest.mark.parametrize("name", PER_JOB)
def test_a_limit_per_job_never_passes_and_the_field_is_named(name: str) -> None:
    assert correction(name) == PER_JOB[name]
    never = why_never(waiting(name, Place("proj", "gpu", "normal")))
    assert never is not None
    assert never.is_useless_again
    assert never.why.endswith(PER_JOB[name])
    error = RefusedError(REFUSAL.format(name))
    assert (error.passing, error.limit, error.understood) == (False, False, True)
    assert error.correction == PER_JOB[name]


@pytest.mark.parametrize("name", PASSING)
def test_any_other_limit_may_pass(name: str) -> None:
    assert why_never(waiting(name, Place("proj", "gpu", "normal"))) is None
    error = RefusedError(REFUSAL.format(name))
    assert (error.passing, error.limit, error.correction) == (True, True, "correct the cluster profile")


@pytest.mark.parametrize("reason", ["PartitionTimeLimit", "QOSMaxWallDurationPerJobLimit", "QOSMinGRES"])
@pytest.mark.parametrize("place", [Place("proj", "short,long", "normal"), Place("proj", "gpu", "normal,big")])
def test_a_limit_proves_nothing_about_a_job_that_may_start_elsewhere(reason: str, place: Place) -> None:
    """SLURM shows the reason of the partition or QOS that it considered last."""
    assert why_never(waiting(reason, place)) is None
    assert why_never(waiting(reason, Place("proj", "gpu", "normal"))) is not None
    assert why_never(waiting("InvalidAccount", place)) is not None


def test_an_answer_of_sbatch_that_did_not_end_proves_nothing() -> None:
    error = RefusedError("no answer within 120 s: QOSMaxGRESPerJob", answered=False)
    assert error.passing
