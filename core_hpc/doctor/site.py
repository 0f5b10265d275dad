"""A commented cluster profile, written from what SLURM reports about a site.

In: the partitions of the site, and accounts of the user. Out: the text of a profile that inherits
from `one_node`. It is a first draft: SLURM does not know which partition a project may use for how
long, nor which set-up lines a job needs. The doctor checks the profile afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core_hpc.common.errors import InputError
from core_hpc.config.slurm import gpus_of_gres
from core_hpc.slurm.commands import Partition, Slurm

BASE = "one_node"
MOST_GPUS = 4
"""GPUs of an update and ranks of it, at most. More rarely pay for the models of this method."""
CPUS, MEM_GB, TIME_MIN, CONTROLLER_MIN = 8, 64, 240, 1440
"""What a job of `one_node` asks for, as far as a site has it."""
USABLE_SHARE = 0.9
"""Share of a node's memory that jobs can ask for. The system keeps the rest."""


def write_profile(slurm: Slurm) -> str:
    """The text of a profile for this site.

    Raises:
        InputError: there is no partition that the user may use.
        SlurmUnavailableError: SLURM does not answer.
    """
    partitions = slurm.partitions()
    if not partitions:
        raise InputError("SLURM shows no partition that you may use; ask the site for access")
    accounts = sorted({a.account for a in slurm.associations() or []})
    cluster = slurm.config().get("ClusterName", "this site")
    return profile_text(cluster, partitions, accounts=accounts, default_account=slurm.default_account())


def profile_text(
    cluster: str, partitions: Mapping[str, Partition], *, accounts: Sequence[str], default_account: str | None
) -> str:
    """The text of a profile.

    Args:
        cluster: name of the cluster.
        partitions: the partitions by name; at least one.
        accounts: accounts of the user.
        default_account: the account of jobs that name none.
    """
    compute = _best(list(partitions.values()), gpus=True)
    light = _best([p for p in partitions.values() if not _gpus(p)] or [compute], gpus=False)
    gpus = _gpus(compute)
    ranks = max(1, min(MOST_GPUS, gpus))
    share = max(1, gpus)
    mem_gb = max(1, int(min(MEM_GB, USABLE_SHARE * compute.mem_gb / share)))
    most_gb = max(mem_gb, int(USABLE_SHARE * compute.mem_gb))
    update_gb = max(mem_gb, int(most_gb * ranks / share))
    lines = [
        f"# A draft of a cluster profile for {cluster}, made from the answers of sinfo and scontrol. Read it, add what",
        "# your site needs (account, setup), and check it:",
        "#   python -m core_hpc.doctor --cluster THIS_FILE",
        "# All fields are in yaml/README.md. Partitions that SLURM shows you (* is the default):",
        *(f"#   {_described(p)}" for p in partitions.values()),
        f"base: {BASE}",
        f"update_ranks: {ranks}".ljust(33) + "# processes of an update" + (", one per GPU" if gpus else ""),
        "slurm:",
        _account(accounts, default_account),
        f"  partition: {_quoted(compute.name)}",
        "  # qos: normal",
        "  # setup: [module load cuda, source slurm/setup/node_local.sh]",
        f"  gpus_per_node: {min(1, gpus)}".ljust(33) + _types(compute),
        f"  cpus: {max(1, min(CPUS, compute.cpus // share))}",
        f"  mem_gb: {mem_gb}".ljust(33)
        + f"# a node has {compute.mem_gb:.0f} GB"
        + (f" for {gpus} GPU(s)" if gpus else ""),
        f"  max_mem_gb: {most_gb}",
        f"  time_min: {_time(TIME_MIN, compute)}".ljust(33) + f"# {_limit(compute)}",
    ]
    if compute.preemptible:
        lines.append(f"  preemption_grace_s: {max(1, compute.grace_s)}".ljust(33) + "# other jobs may end these")
    small_gb = max(1, min(16, int(USABLE_SHARE * light.mem_gb)))
    light_gb = max(small_gb, int(USABLE_SHARE * light.mem_gb))
    where = f"partition: {_quoted(light.name)}, gpus_per_node: 0, max_mem_gb: {light_gb}"
    lines += [
        f"  score: {{{where}, cpus: {max(1, min(4, light.cpus))}, mem_gb: {small_gb}, time_min: {_time(60, light)}}}",
        f"  update: {{gpus_per_node: {ranks if gpus else 0}, mem_gb: {update_gb}, max_mem_gb: {most_gb}}}",
        f"  controller: {{{where}, time_min: {_time(CONTROLLER_MIN, light)}}}",
    ]
    return "\n".join(lines) + "\n"


def _best(partitions: Sequence[Partition], *, gpus: bool) -> Partition:
    """The partition for a kind of job: up, with GPUs if wanted, the default, then the longest time limit."""
    return max(
        partitions,
        key=lambda p: (p.state == "UP", gpus and _gpus(p) > 0, not p.preemptible, p.is_default, -_minutes_short(p)),
    )


def _minutes_short(partition: Partition) -> float:
    """How much shorter the time limit is than what a controller likes."""
    limit = partition.time_limit_min
    return 0.0 if limit is None else max(0.0, CONTROLLER_MIN - limit)


def _gpus(partition: Partition) -> int:
    """GPUs of the node with the most."""
    return max((gpus_of_gres(gres) for gres in partition.gres), default=0)


def _types(partition: Partition) -> str:
    kinds = sorted({item for gres in partition.gres for item in gres.split(",") if item.startswith("gpu")})
    if not kinds:
        return "# no partition has GPUs: engines and updates use CPU cores"
    return f"# nodes have {', '.join(kinds)}"


def _account(accounts: Sequence[str], default: str | None) -> str:
    if not accounts:
        return "  # account: my-project"
    listed = ", ".join(accounts)
    return (
        f"  # account: {_quoted(default or accounts[0])}".ljust(33) + f"# yours: {listed}; default: {default or 'none'}"
    )


def _time(minutes: int, partition: Partition) -> int:
    limit = partition.time_limit_min
    return minutes if limit is None else max(1, min(minutes, int(limit)))


def _limit(partition: Partition) -> str:
    limit = partition.time_limit_min
    return "no time limit" if limit is None else f"minutes; the partition allows {limit:g}"


def _described(partition: Partition) -> str:
    star = "*" if partition.is_default else ""
    gres = f", {', '.join(partition.gres)}" if partition.gres else ", no GPUs"
    other = f", {partition.state}" * (partition.state != "UP") + ", preemptible" * partition.preemptible
    limit = "no time limit" if partition.time_limit_min is None else f"at most {partition.time_limit_min:g} min"
    return f"{partition.name}{star}: {limit}, {partition.cpus} cores, {partition.mem_gb:.0f} GB{gres}{other}"


def _quoted(name: str) -> str:
    """A name as a YAML text, whatever characters a site uses."""
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
