"""The browse page as a folder of files that a browser opens from disk.

The input is the `Content` of some runs. The output is

    index.html        the page, with its style and script inside
    data/NAME.js      the data files (`browse/content.py`)

The folder has the outcomes of all problems. Texts are large, so the number of completions with texts
is limited; problems are chosen so that every flag and iteration is represented.
"""

from __future__ import annotations

import html
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import polars as pl

from analysis.browse.content import Block, Content, data_file
from analysis.browse.outcomes import BIT
from core_hpc.store import manifests, output_folder

DEFAULT_COMPLETIONS = 10_000
_CHUNK_COMPLETIONS = 200
"""Completions per file of details. A file has at least one problem."""
_READ_COMPLETIONS = 4_000
"""Completions that are in memory at once."""
_DATA_NAME = re.compile(r"(index|[pbd]\d+-[a-z]+(-\d+)*)\.js")
_POLICY = "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Exported:
    """What was written."""

    page: Path
    num_problems: int  # problems of all blocks
    num_with_texts: int


def page_html(title: str) -> str:
    """The page without data. Its script loads the data files from the folder `data` beside it."""
    here, nonce = files("analysis.browse"), secrets.token_urlsafe(16)
    text = here.joinpath("page.html").read_text(encoding="utf-8")
    values = {
        "POLICY": html.escape(_POLICY.format(nonce)),
        "NONCE": nonce,
        "TITLE": html.escape(title),
        "STYLE": here.joinpath("page.css").read_text(encoding="utf-8"),
        "SCRIPT": here.joinpath("page.js").read_text(encoding="utf-8"),
    }
    return re.sub(r"@([A-Z]+)@", lambda match: values[match[1]], text)


def export(
    content: Content,
    out: Path,
    *,
    title: str,
    num_completions: int = DEFAULT_COMPLETIONS,
    always: Sequence[tuple[Block, str]] = (),
) -> Exported:
    """Write the page and its data files. An earlier page in the folder is replaced.

    Args:
        content: the content of the runs.
        out: the folder; it is created if it does not exist.
        title: the title of the page.
        num_completions: about how many completions get their texts.
        always: problems that get their texts in any event.

    Raises:
        InputError: the folder cannot be written.
        StoreError: a published file is missing or damaged.
    """
    output_folder.require_writable(out, min_free_gb=0, advice=output_folder.ANOTHER_OUT)
    data = out / "data"
    manifests.make_folder(data)
    for path in data.iterdir():
        if _DATA_NAME.fullmatch(path.name):
            path.unlink()
    sizes = {block: content.sizes(block) for block in content.blocks}
    total = sum(frame.height for frame in sizes.values())
    chosen = choose(sizes, num_completions, always)
    for block in content.blocks:
        _write(data, f"b{block.name}", content.block(block, _write_details(content, data, block, chosen[block])))
    for run, split in dict.fromkeys((block.run, block.split) for block in content.blocks):
        _write(data, f"p{run}-{split}", content.problems(run, split))
    num = sum(map(len, chosen.values()))
    left_out = "" if num == total else f"{num} of {total} entries have their texts in this folder"
    _write(data, "index", content.index(live=False, left_out=left_out))
    page = out / "index.html"
    page.write_text(page_html(title), encoding="utf-8")
    return Exported(page, total, num)


def _write(folder: Path, name: str, content: object) -> None:
    (folder / f"{name}.js").write_bytes(data_file(name, content))


def choose(
    sizes: Mapping[Block, pl.DataFrame], num_completions: int, always: Sequence[tuple[Block, str]] = ()
) -> dict[Block, dict[str, int]]:
    """Choose the problems whose texts are written.

    Blocks and flags take turns, and the latest iterations come first, so a small number still has
    examples of everything. At least one problem is chosen.

    Args:
        sizes: the problems of each block with completions and flags (`Content.sizes`).
        num_completions: about how many completions get their texts.
        always: problems that are chosen in any event.

    Returns:
        For each block the chosen problems, with their numbers of completions.
    """
    chosen: dict[Block, dict[str, int]] = {block: {} for block in sizes}
    queues = []
    for block in sorted(sizes, key=lambda b: (-b.iteration, b.run, b.split)):
        problems = sizes[block]
        masks = [(problems["flags"].to_numpy() & bit) > 0 for bit in BIT.values()]
        rows = [problems.filter(mask) for mask in masks] + [problems]
        queues += [(block, frame.select("problem_id", "num_completions").iter_rows()) for frame in rows]
    for block, problem in always:
        own = sizes[block].filter(problem_id=problem)
        chosen[block] |= dict(own.select("problem_id", "num_completions").iter_rows())
    num = sum(size for problems in chosen.values() for size in problems.values())
    while queues:
        for queue in list(queues):
            block, rest = queue
            row = next((row for row in rest if row[0] not in chosen[block]), None)
            if row is None:
                queues.remove(queue)
                continue
            if num and num + row[1] > num_completions:
                return chosen
            chosen[block][row[0]] = row[1]
            num += row[1]
    return chosen


def _write_details(content: Content, folder: Path, block: Block, chosen: dict[str, int]) -> dict[str, int]:
    """Write the details of a block. Returns the number of the file of each problem."""
    found: dict[str, int] = {}
    chunk = 0
    for batch in _batches(chosen, _READ_COMPLETIONS):
        details = dict(content.details(block, batch))
        for part in _batches({problem: chosen[problem] for problem in batch}, _CHUNK_COMPLETIONS):
            _write(folder, f"d{block.name}-{chunk}", {problem: details[problem] for problem in part})
            found |= dict.fromkeys(part, chunk)
            chunk += 1
    return found


def _batches(sizes: dict[str, int], limit: int) -> Iterator[Sequence[str]]:
    """Split problems into batches of at most `limit` completions, with at least one problem each."""
    batch: list[str] = []
    num = 0
    for problem, size in sorted(sizes.items()):
        if batch and num + size > limit:
            yield batch
            batch, num = [], 0
        batch.append(problem)
        num += size
    if batch:
        yield batch
