"""Mistakes in base files and profiles: the message names the file in which the value stands."""

from __future__ import annotations

from pathlib import Path

import pytest

import yaml
from core_hpc.config.slurm import SlurmSection
from core_hpc.runs.origins import Layer, with_origins
from core_hpc.runs.sweep import load_sweep
from tests.unit.config.test_sweep import mistakes, write


def other(path: Path, **content: object) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_value_of_a_profile(tmp_path: Path) -> None:
    own = other(tmp_path / "site.yaml", driver="arrays", slurm={"mem_gb": -1, "partitoin": "a"})
    mem, unknown = sorted(mistakes(tmp_path, cluster={"profile": "site.yaml"}))
    assert mem.startswith("cluster.slurm.mem_gb: ")
    assert mem.endswith(f" [slurm.mem_gb in {own}]")
    assert unknown == f"cluster.slurm.partitoin: unknown key; did you mean `partition`? [slurm.partitoin in {own}]"


def test_a_value_of_a_base_of_a_profile(tmp_path: Path) -> None:
    below = other(tmp_path / "below.yaml", driver="arrays", slurm={"mem_gb": -1})
    other(tmp_path / "site.yaml", base="below.yaml", slurm={"cpus": 2})
    (message,) = mistakes(tmp_path, cluster={"profile": "site.yaml"})
    assert message.endswith(f" [slurm.mem_gb in {below}]")


def test_a_value_of_a_base_file(tmp_path: Path) -> None:
    first = other(tmp_path / "first.yaml", seed="x", iterations="y", team=[{"name": "A"}, {"name": "b", "model": "y"}])
    second = other(tmp_path / "second.yaml", iterations="z")
    found = mistakes(tmp_path, base=["first.yaml", "second.yaml"], iterations="w", update={"loss": "none"})
    assert all("[" not in m for m in found if m.startswith(("iterations", "update", "team")))
    assert [m for m in found if m.endswith(f" [seed in {first}]")] == [m for m in found if m.startswith("seed: ")]
    assert not any(str(second) in m for m in found)


def test_a_value_that_the_command_or_the_grid_replaces_is_not_that_of_the_base(tmp_path: Path) -> None:
    other(tmp_path / "first.yaml", seed=3, update={"learning_rate": 1e-5})
    found = mistakes(tmp_path, "seed=x", base="first.yaml", grid={"update.learning_rate": [-1]})
    assert len(found) == 2
    assert "first.yaml" not in "".join(found)


def test_a_missing_key_belongs_to_the_file_of_its_section(tmp_path: Path) -> None:
    held_out = {"source": "generated", "count": 4}
    below = other(tmp_path / "first.yaml", problems={"train": {"count": 40}, "evaluation": held_out})
    found = mistakes(tmp_path, base="first.yaml", problems={"evaluation": held_out})
    assert [m.partition("; ")[0] for m in found] == ["problems.train.source: is missing"]
    assert found[0].endswith(f" [problems.train in {below}]")


def test_a_rule_about_several_fields_names_the_files_of_those_in_its_message(tmp_path: Path) -> None:
    own = other(tmp_path / "site.yaml", driver="arrays", slurm={"update": {"nodes": 2}})
    (message,) = mistakes(tmp_path, cluster={"profile": "site.yaml", "update_ranks": 3})
    assert message.startswith("cluster: update_ranks (3) must be a multiple of slurm.update.nodes (2)")
    assert message.endswith(f" [slurm.update.nodes in {own}]")


@pytest.mark.parametrize("group", ["", "update"])
def test_gpus_of_the_sweep_beside_those_of_a_profile(group: str, tmp_path: Path) -> None:
    def within(**fields: object) -> dict[str, object]:
        return {group: fields} if group else fields

    site = other(tmp_path / "site.yaml", driver="arrays", slurm=within(gpus_per_node=4))
    (message,) = mistakes(tmp_path, cluster={"profile": "site.yaml", "slurm": within(gres="tmp:5,gpu:a100:2")})
    path = f"slurm.{group}".rstrip(".")
    assert message == (
        f"cluster.{path}: gres (tmp:5,gpu:a100:2) and gpus_per_node (4) both ask for GPUs; keep one of them. "
        f"null turns off that of a profile: gpus_per_node: null [{path}.gpus_per_node in {site}]"
    )
    # What the message advises is a valid file.
    for fields in ({"gres": "gpu:a100:2", "gpus_per_node": None}, {"gres": "tmp:5"}):
        cluster = {"profile": "site.yaml", "slurm": within(**fields)}
        slurm = load_sweep(write(tmp_path, cluster=cluster)).cluster.slurm
        assert slurm.num_gpus("update") == (2 if "gpus_per_node" in fields else 4)


def test_a_resource_of_a_group_that_is_no_gpu_leaves_the_inherited_gpus() -> None:
    slurm = SlurmSection(gpus_per_node=2, generate={"gres": "tmp:5"}, update={"gres": "gpu:a100:4"})  # type: ignore[arg-type]
    jobs = [slurm.job(group) for group in ("generate", "update", "score")]
    assert [(job["gres"], job["gpus_per_node"]) for job in jobs] == [("tmp:5", 2), ("gpu:a100:4", None), (None, 0)]


def test_a_mistake_of_a_grid_in_a_base_file(tmp_path: Path) -> None:
    below = other(tmp_path / "first.yaml", grid={"seed": []})
    (message,) = mistakes(tmp_path, base="first.yaml")
    assert message == f"grid.seed: must be a list with at least one value [grid.seed in {below}]"


def test_a_mapping_over_a_list_is_not_that_of_the_base(tmp_path: Path) -> None:
    other(tmp_path / "first.yaml", team=[{"name": "a", "model": "x"}])
    (message,) = mistakes(tmp_path, base="first.yaml", team={"name": "a", "model": "x"})
    assert "first.yaml" not in message


def test_a_list_is_replaced_as_a_whole() -> None:
    layers = [Layer(Path("sweep.yaml"), {"a": [{"b": 1}]}), Layer(Path("base.yaml"), {"a": [{"b": 1}, {"b": 2}]})]
    for path in ("a.0.b", "a.1.b"):
        assert with_origins([f"{path}: is wrong"], {"a": [{"b": 1}]}, layers) == [f"{path}: is wrong"]
