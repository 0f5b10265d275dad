"""Sweep files and cluster profiles that inherit: their text, and their fields merged over those of their bases.

In: the path of a sweep file or profile. Out: plain data, in which nothing is checked yet. A file that
is missing or is not YAML ends with the message for its user. Overrides, grids and the checks of
fields are in `runs/sweep.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from core_hpc.common.encoding import why_not_utf8
from core_hpc.common.errors import ConfigError
from core_hpc.common.shipped import shipped_folder
from core_hpc.config.yaml_mistakes import explain_yaml
from core_hpc.config.yaml_text import parse_yaml, read_text
from core_hpc.extensions.sources import located
from core_hpc.runs.origins import Layer

MAX_BASES = 20
PROFILES = shipped_folder("yaml") / "cluster"


def read_with_bases(path: Path, *, profile: bool = False) -> tuple[str, dict[str, Any], list[Layer]]:
    """The text of a file, its fields merged over those of its base files, and the files from which they come.

    With several bases, the fields of a later one replace those of the earlier ones.

    Args:
        path: The file.
        profile: Whether it is a cluster profile, whose base may be the name of a shipped profile.

    Raises:
        ConfigError: The file or one of its bases cannot be read. The message names this file.
    """
    return _read(path, profile=profile, heirs=(), read=[])


def _read(
    path: Path, *, profile: bool, heirs: tuple[Path, ...], read: list[Path]
) -> tuple[str, dict[str, Any], list[Layer]]:
    """`read_with_bases`, for a file that `heirs` inherit from; `read` gets every file."""
    resolved = path.expanduser().resolve()
    if resolved in heirs:
        raise ConfigError(str(path), ["base: this file inherits from itself"])
    read.append(resolved)
    if len(read) > MAX_BASES + 1:
        raise ConfigError(str(path), [f"base: more than {MAX_BASES} files inherit from each other"])
    text = ""
    try:
        text = read_text(resolved)
        data = parse_yaml(text)
    except OSError as e:
        raise ConfigError(str(path), [f"cannot be read: {e}"]) from e
    except UnicodeDecodeError as e:
        raise ConfigError(str(path), [why_not_utf8(resolved)]) from e
    except yaml.YAMLError as e:
        raise ConfigError(str(path), [f"not valid YAML: {explain_yaml(e, text)}"]) from e
    if not isinstance(data, dict):
        example = "driver: arrays" if profile else "name: my-sweep"
        raise ConfigError(str(path), [f"the file must be a mapping of keys, for example `{example}`"])
    data = located(data, resolved.parent)
    named = data.get("base")
    bases = named if isinstance(named, list) else [] if named is None else [named]
    if not all(isinstance(base, str) for base in bases):
        message = "base: must be the path of another file of this kind, relative to this file, or a list of paths"
        raise ConfigError(str(path), [message])
    inherited: dict[str, Any] = {}
    layers: list[Layer] = []
    for base in bases:
        below = _base_file(path, base, profile=profile)
        _, fields, of_base = _read(below, profile=profile, heirs=(*heirs, resolved), read=read)
        inherited, layers = _merge(inherited, fields), of_base + layers
    own = Layer(resolved, data, "cluster" if profile else "")
    return text, _merge(inherited, data), [own, *layers]


def _base_file(path: Path, base: str, *, profile: bool) -> Path:
    """The file that `base` of the file `path` names."""
    own = path.expanduser().resolve()
    named = own.parent / Path(base).expanduser()
    if not (profile and _is_name(base)):
        if named.is_file():
            return named
        near = _nearest(base, (p.name for p in named.parent.glob("*.yaml") if p != own))
        advice = f"; did you mean `{Path(base).with_name(near)}`?" if near else ""
        raise ConfigError(str(path), [f"base: there is no file {named}{advice} (base is a path relative to this file)"])
    choices = [p for p in (own.parent / f"{base}.yaml", PROFILES / f"{base}.yaml") if p != own]
    found = next((p for p in choices if p.is_file()), None)
    if found is None:
        raise ConfigError(str(path), [f"base: {_no_profile(base, choices)}"])
    return found


def _is_name(profile: str) -> bool:
    return not ("/" in profile or profile.endswith((".yaml", ".yml")))


def _nearest(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1)), None)


def _no_profile(name: str, looked: Iterable[Path]) -> str:
    """The message for the name or path of a profile that does not exist."""
    paths = list(looked)
    shipped = sorted(p.stem for p in PROFILES.glob("*.yaml"))
    beside = (p for path in paths for p in path.parent.glob("*.yaml"))
    near = _nearest(name, {p.stem if _is_name(name) else p.name for p in beside} | {*shipped})
    return (
        f"no profile {name!r}; {f'did you mean `{near}`? ' if near else ''}"
        f"(searched {' and '.join(str(p) for p in paths)}; shipped profiles: {', '.join(shipped)})"
    )


def apply_profile(source: Path, data: dict[str, Any], named: str | None) -> list[Layer]:
    """Merge the sweep's own `cluster` section over the cluster profile that it names. Returns the profile's files.

    Args:
        source: The sweep file.
        data: Its fields, which are changed.
        named: Name or file of a profile, instead of the field `cluster.profile`.
    """
    own = data.get("cluster") or {}
    if not isinstance(own, dict):
        return []  # validation reports it
    wanted = named or own.get("profile")
    if not isinstance(wanted, str):
        return []
    home = Path.cwd() if named else source.expanduser().resolve().parent
    choices = [folder / f"{wanted}.yaml" for folder in (home / "cluster", PROFILES)]
    if not _is_name(wanted):
        choices = [home / Path(wanted).expanduser()]
    path = next((p for p in choices if p.is_file()), None)
    if path is None:
        where = "--cluster" if named else "cluster.profile"
        raise ConfigError(str(source), [f"{where}: {_no_profile(wanted, choices)}"])
    _, profile, layers = read_with_bases(path, profile=True)
    profile.pop("base", None)
    if "cluster" in profile:
        message = "cluster: a profile has the fields of the section `cluster` at its top level; leave this key out"
        raise ConfigError(str(path), [message])
    data["cluster"] = {**_merge(profile, own), "profile": wanted}
    return layers


def _merge(below: Any, above: Any) -> Any:
    """Merge mappings key by key. Anything else is replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        return {**below, **{k: _merge(below[k], v) if k in below else v for k, v in above.items()}}
    return above
