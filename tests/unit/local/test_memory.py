"""How engines and trainers share GPUs: what memory allows, and the reason that is reported."""

from __future__ import annotations

from typing import Any

import pytest

from core_hpc.config.cluster import ClusterSection
from core_hpc.config.model import LoraSection, ModelSection
from core_hpc.engines.share import ENVIRONMENT, Sharing
from core_hpc.local.memory import MIN_KV_CACHE_GB, UPDATE_GB, USABLE, Needs, choose

SMALL = Needs(engine_gb=1.0, trainer_gb=1.0)
MIDDLE = Needs(engine_gb=8.0, trainer_gb=8.0)


def chosen(
    needs: list[Needs], gpu_gb: float | None, *, num_gpus: int = 1, host_gb: float = 512, **cluster: Any
) -> Sharing:
    return choose(
        ClusterSection(**{"gpu_sharing": "auto", **cluster}), needs, num_gpus=num_gpus, gpu_gb=gpu_gb, host_gb=host_gb
    )


def test_the_best_way_that_memory_allows() -> None:
    kinds = [(chosen([MIDDLE, MIDDLE], gb).kind, gb) for gb in (24, 40, 48, 80, 140)]
    assert [kind for kind, _ in kinds] == ["evict", "sleep", "sleep", "split", "split"], kinds
    assert chosen([SMALL, SMALL], 32).kind == "split"
    assert chosen([MIDDLE, MIDDLE], 48, host_gb=16).kind == "evict", "no memory for sleeping engines"


@pytest.mark.parametrize("needs", [[SMALL, SMALL], [MIDDLE, MIDDLE], [SMALL, MIDDLE, MIDDLE]])
@pytest.mark.parametrize("num_gpus", [1, 2])
def test_the_workers_fit_on_the_gpu(needs: list[Needs], num_gpus: int) -> None:
    """Added up per worker, the memory is never more than the GPU has."""
    seen = set()
    for gpu_gb in range(8, 160, 4):
        found = chosen(needs, gpu_gb, num_gpus=num_gpus)
        seen.add(found.kind)
        each = -(-len(needs) // num_gpus)
        trainers = sorted((n.trainer_gb + 1 for n in needs), reverse=True)[:each]
        engine = found.engine_share * gpu_gb
        if found.kind == "split":
            assert each * engine + sum(trainers) + UPDATE_GB <= USABLE * gpu_gb + 0.1 * each
        elif found.kind == "sleep":
            assert engine + (each - 1) + sum(trainers) <= USABLE * gpu_gb + 0.1
            assert each + sum(trainers) + UPDATE_GB <= USABLE * gpu_gb
        if found.kind != "evict":
            assert engine >= max(n.engine_gb for n in needs) + MIN_KV_CACHE_GB
            assert f"GPU of {gpu_gb} GiB" in found.why
    assert seen == {"evict", "sleep", "split"}


def test_the_configured_way_is_used_or_the_reason_is_reported() -> None:
    assert chosen([MIDDLE, MIDDLE], 24, gpu_sharing="evict", gpu_memory_share=0.7) == Sharing("evict", 0.7)
    assert chosen([MIDDLE, MIDDLE], 24, gpu_sharing="split", gpu_memory_share=0.3) == Sharing("split", 0.3)
    assert chosen([MIDDLE, MIDDLE], 140, gpu_sharing="sleep").kind == "sleep"
    short = chosen([MIDDLE, MIDDLE], 24, gpu_sharing="sleep")
    assert short.kind == "evict"
    assert "2 engine(s) and 2 trainer(s) on a GPU of 24 GiB: not enough memory" in short.why
    short = chosen([MIDDLE, MIDDLE], 48, host_gb=16, gpu_sharing="sleep")
    assert "16 GiB of sleeping weights on a machine with 16 GiB: not enough memory" in short.why
    assert "GPU of its own" in chosen([MIDDLE, MIDDLE], 24, num_gpus=4).why
    for unknown in (chosen([MIDDLE], None), chosen([], 80), chosen([Needs(0, 0)], 80)):
        assert (unknown.kind, "not known" in unknown.why) == ("evict", True)
    assert choose(ClusterSection(gpu_sharing="auto"), [], num_gpus=0, gpu_gb=None, host_gb=1) == Sharing("evict", 0.85)
    with pytest.raises(ValueError, match="parts_in_engine"):
        ClusterSection(gpu_sharing="auto", parts_in_engine=2)


def test_a_worker_gets_the_decision_from_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert Sharing.of_worker(ClusterSection(gpu_memory_share=0.6)) == Sharing("evict", 0.6)
    for name, value in Sharing("sleep", 0.41, "because").environment().items():
        monkeypatch.setenv(name, value)
    assert Sharing.of_worker(ClusterSection(gpu_memory_share=0.6)) == Sharing("sleep", 0.41)


def test_needs_by_tuning() -> None:
    def needs(num_ranks: int = 1, engine_gpus: int = 1, zero_stage: Any = 2, **model: Any) -> Needs:
        cluster = ClusterSection(update_ranks=num_ranks, engine_gpus=engine_gpus, zero_stage=zero_stage)
        return Needs.of(ModelSection(name="m", model="org/m", **model), 2**30, cluster)

    assert (needs().engine_gb, needs().trainer_gb) == (2.0, 2.0)
    assert needs(dtype="float32").engine_gb == 4.0
    assert needs(tuning="full", lora=None).trainer_gb == 2 + 4 + 4 + 16 + 2
    assert needs(4, tuning="full", lora=None).trainer_gb == 2 + 4 + 4 + 4 + 2
    assert needs(tuning="qlora", lora=LoraSection()).trainer_gb < 1
    assert needs(2, engine_gpus=2) == Needs(engine_gb=1.0, trainer_gb=2.0)
    assert needs(4, zero_stage=3) == Needs(engine_gb=2.0, trainer_gb=0.5)


def test_an_engine_on_two_gpus_takes_memory_of_both() -> None:
    """Two models on two GPUs: with two GPUs each, both engines lie on every GPU."""
    alone, split = (
        chosen([MIDDLE, MIDDLE], 80, num_gpus=2, **cluster) for cluster in ({}, {"engine_gpus": 2, "update_ranks": 2})
    )
    assert (alone.kind, split.kind) == ("split", "split")
    assert "1 engine(s) and 1 trainer(s) on a GPU of 80 GiB" in alone.why
    assert "2 engine(s) and 2 trainer(s) on a GPU of 80 GiB" in split.why
    assert "GPU of its own" in chosen([MIDDLE], 24, num_gpus=3, engine_gpus=2).why
    assert "GPU of its own" not in chosen([MIDDLE], 24, num_gpus=2, engine_gpus=2).why
