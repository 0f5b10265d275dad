"""Names of runs for people: what varies in the sweep, without the hash of the run folder.

In: ids of runs, which are LABEL-HASH, or folders. Out: labels, titles with the name of the sweep, and
names of folders. Nothing on disk has these names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

_HASH = re.compile(r"-[0-9a-f]{8}$")
ONLY_RUN = "run"
"""Label of the run of a sweep that varies nothing."""


def label_of(run_id: str) -> str:
    """The label of a run. An id without a hash, of an imported run, is its own label.

    >>> label_of("seed-1-loss-gspo-1f9b2bd0"), label_of("imported")
    ('seed-1-loss-gspo', 'imported')
    """
    return _HASH.sub("", run_id)


def hash_of(run_id: str) -> str:
    """The hash of the scientific fields of a run.

    >>> hash_of("seed-1-loss-gspo-1f9b2bd0")
    '1f9b2bd0'
    """
    return run_id.rpartition("-")[2]


def short_names(run_ids: Sequence[str]) -> dict[str, str]:
    """The label of each run of a sweep. Two runs with one label, of two versions of a file, keep their ids.

    >>> short_names(["core-11111111", "seed-1-22222222", "seed-1-33333333"])
    {'core-11111111': 'core', 'seed-1-22222222': 'seed-1-22222222', 'seed-1-33333333': 'seed-1-33333333'}
    """
    labels = [label_of(run_id) for run_id in run_ids]
    return {
        run_id: label if labels.count(label) == 1 else run_id for run_id, label in zip(run_ids, labels, strict=True)
    }


def folder_names(folders: Sequence[Path], taken: Collection[str] = ()) -> dict[str, Path]:
    """The folders by name, in their order and each once: the shortest end of its path that no other one has.

    Args:
        folders: the folders.
        taken: names that no folder may have.

    >>> list(folder_names([Path("/one/core"), Path("/two/core"), Path("/two/base"), Path("/two/grid")], ["base"]))
    ['one/core', 'two/core', 'two/base', 'grid']
    """
    paths = list(dict.fromkeys(path.resolve() for path in folders))
    found = {}
    for path in paths:
        others = [other.parts for other in paths if other != path]
        ends = (path.parts[-num:] for num in range(1, len(path.parts)))
        own = ("/".join(end) for end in ends if not any(other[-len(end) :] == end for other in others))
        found[next((name for name in own if name not in taken), str(path))] = path
    return found


def title_of(sweep: str, run_id: str) -> str:
    """The sweep, and what varies in it.

    >>> title_of("core", "seed-1-1f9b2bd0"), title_of("quickstart", "run-1f9b2bd0")
    ('core: seed-1', 'quickstart')
    """
    label = label_of(run_id)
    return sweep if label == ONLY_RUN else f"{sweep}: {label}"
