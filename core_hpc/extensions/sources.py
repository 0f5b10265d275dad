"""The files of users: read once, checked without running them, and known by a digest of their content.

In: paths of Python files, or their copies in a run folder. Out: a `Source` per file, which every
function of this package finds by the digest in a reference. A file is read when the sweep file is
read. From then on only this content counts, and run folders have a copy of it (`write_copies`), so a
file that the user changes meanwhile changes no run. `workers.py` runs the functions.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core_hpc.common.encoding import why_not_utf8
from core_hpc.common.errors import InputError, StoreError
from core_hpc.common.ownership import OwnershipError, read_own
from core_hpc.config.extensions import FUNCTION_KEYS, REFERENCE
from core_hpc.extensions.points import Use

MAX_BYTES = 1 << 20
_OWN_PACKAGES = [Path(__file__).resolve().parents[2] / name for name in ("core_hpc", "analysis")]
PAGE = "core_hpc/README.md, Extension points"


@dataclass(frozen=True)
class Source:
    """The content of a file, and the path by which messages name it: in a run, its name alone."""

    path: str
    text: str

    @property
    def name(self) -> str:
        """The name of the file, without its folder."""
        return Path(self.path).name

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits that identify the content."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def reference(self, function: str) -> str:
        """The resolved reference of a function in it."""
        return f"{self.name}:{function}@{self.digest}"


_KNOWN: dict[str, Source] = {}
"""Digest -> source, of all files that this process has read. Equal content has one entry."""
_REFUSED: dict[str, OwnershipError] = {}
"""Digest -> why this process must not run a copy in a run folder. Other content of that run can be read."""


def remember(sources: Iterable[Source]) -> None:
    """Make sources known to this process, so that their functions can be called."""
    for source in sources:
        _KNOWN.setdefault(source.digest, source)


def source_of(reference: str) -> Source:
    """The source of the function that a resolved reference names.

    Raises:
        StoreError: no file of this content was read.
        OwnershipError: somebody else may have written its copy in the run folder.
    """
    digest = digest_of(reference)
    source = _KNOWN.get(digest)
    if source is None:
        if digest in _REFUSED:
            raise _REFUSED[digest]
        raise StoreError(f"{reference}: its source is not known to this process; load it with a sweep file or a run")
    return source


def _parts(reference: str) -> re.Match[str]:
    found = REFERENCE.fullmatch(reference)
    assert found is not None, reference
    return found


def digest_of(reference: str) -> str:
    """The digest in a resolved reference; empty if it has none.

    >>> digest_of("my_rewards.py:brevity@0123456789abcdef")
    '0123456789abcdef'
    """
    return _parts(reference)["digest"] or ""


def function_name(reference: str) -> str:
    """The name of the function in a reference.

    >>> function_name("my_rewards.py:brevity@0123456789abcdef")
    'brevity'
    """
    return _parts(reference)["function"]


def read_source(path: Path) -> Source:
    """Read a Python file of the user. InputError if it cannot be used."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")  # a byte order mark is accepted
    except UnicodeDecodeError as e:
        raise InputError(f"{path} {why_not_utf8(path)}") from e
    except OSError as e:
        raise InputError(f"{path} cannot be read ({e})") from e
    if len(content) > MAX_BYTES:
        raise InputError(f"{path} has more than {MAX_BYTES >> 20} MB; put data into other files")
    return Source(str(path), text)


# --- references in a sweep file ------------------------------------------------------------------


def located(data: Any, folder: Path, path: str = "") -> Any:
    """A copy of the content of a sweep file in which references have absolute paths.

    Args:
        data: the content, or a part of it.
        folder: what relative paths are relative to.
        path: dotted path of this part.
    """

    def absolute(_path: str, found: re.Match[str]) -> str:
        if found["digest"]:
            return found[0]
        return f"{(folder / Path(found['file']).expanduser()).resolve()}:{found['function']}"

    return _with_references(data, path, absolute)


def with_digests(data: Any, mistakes: list[str], sources: dict[str, Source], *, read: Callable[[Path], Source]) -> Any:
    """A copy of the content of a sweep file in which references have a digest and no folder.

    Args:
        data: the content with absolute paths.
        mistakes: one line is added for each file that cannot be read.
        sources: the files that were read, by digest; new ones are added.
        read: `read_source`, or a function that reads each file once.
    """

    def digested(path: str, found: re.Match[str]) -> str:
        if found["digest"]:
            mistakes.append(f"{path}: the digest is added by core_hpc; write {found[0].partition('@')[0]}")
            return found[0]
        try:
            source = read(Path(found["file"]))
        except InputError as e:
            mistakes.append(f"{path}: {e}")
            return found[0]
        sources[source.digest] = source
        return source.reference(found["function"])

    return _with_references(data, "", digested)


def _with_references(data: Any, path: str, replace: Callable[[str, re.Match[str]], str]) -> Any:
    """A copy of data with another text for each reference, which `replace` makes from its path and its parts.

    A list below the name of a function, such as the values of a grid, has references, too.
    """

    def within(part: Any, path: str, key: str) -> Any:
        if isinstance(part, dict):
            return {k: within(v, f"{path}.{k}" if path else str(k), str(k)) for k, v in part.items()}
        if isinstance(part, list):
            return [within(v, f"{path}.{i}", key) for i, v in enumerate(part)]
        names_a_function = isinstance(part, str) and key.rpartition(".")[2] in FUNCTION_KEYS
        found = REFERENCE.fullmatch(part) if names_a_function else None
        return part if found is None else replace(path, found)

    return within(data, path, path)


# --- checks without running anything -------------------------------------------------------------


_tree = lru_cache(maxsize=16)(ast.parse)  # a sweep asks for the same files in every run


def mistakes_of(use: Use) -> list[str]:
    """What is wrong with a function that a configuration names; it is not run.

    Each message begins with the file and the line.
    """
    source, name = source_of(use.reference), function_name(use.reference)
    try:
        tree = _tree(source.text)
    except SyntaxError as e:
        return [f"{source.path}, line {e.lineno}: {e.msg}"]
    except ValueError as e:  # a null byte
        return [f"{source.path}: is not Python ({e})"]
    beside = [f"{source.path}, line {line}: {message}" for line, message in _imports_of_neighbours(tree, source)]
    defined = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    if name not in defined:
        known = f"it has {', '.join(defined)}" if defined else "it has none"
        return [*beside, f"{source.path}: has no function {name} at its top level ({known})"]
    node = defined[name]
    found = _parameters(node, use)
    return [*beside, *(f"{source.path}, line {node.lineno}: {message}" for message in found)]


def _imports_of_neighbours(tree: ast.Module, source: Source) -> Iterator[tuple[int, str]]:
    """Imports of files and packages beside this one: they would be missing in the run folder."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").partition(".")[0]] if node.level == 0 else ["."]
        else:
            continue
        for name in names:
            beside = "a relative import" if name == "." else _neighbour(Path(source.path).parent, name)
            if beside:
                yield (
                    node.lineno,
                    f"{beside}: only this file is copied into the run, so write the code into it, or install it",
                )


def _neighbour(folder: Path, name: str) -> str:
    """What is imported if a module lies in the folder of the user's file; empty if it does not."""
    package = folder / name
    if (folder / f"{name}.py").is_file():
        return f"imports {name}.py, which lies beside it"
    if package.resolve() in _OWN_PACKAGES or not package.is_dir():
        return ""
    # A folder without __init__.py, for example one with data, does not hide an installed package.
    is_found = (package / "__init__.py").is_file() or (any(package.glob("*.py")) and _searched(name) is None)
    return f"imports {name}/, which lies beside it" if is_found else ""


def _searched(name: str) -> ModuleSpec | None:
    """The installed module or package of this name, if it has a file."""
    spec = find_spec(name)
    return spec if spec is not None and spec.origin is not None else None


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef, use: Use) -> list[str]:
    """What is wrong with the parameters of a function."""
    arguments, wanted = node.args, len(use.point.parameters)
    advice = f"a {use.point.title} is `{use.point.signature}` ({PAGE})"
    if isinstance(node, ast.AsyncFunctionDef):
        return [f"{node.name} is async; {advice}"]
    positional = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    required = len(positional) - len(arguments.defaults)
    if required > wanted or (len(positional) < wanted and arguments.vararg is None):
        return [f"{node.name} takes {required} positional argument(s), but gets {wanted}; {advice}"]
    by_default = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    needed = [a.arg for a, default in by_default if default is None and a.arg not in use.options]
    options = [*positional[wanted:], *(a.arg for a in arguments.kwonlyargs)]
    unknown = [name for name in use.options if name not in options] if arguments.kwarg is None else []
    known = ", ".join(options) or "no options"
    return [
        *(f"{node.name} needs the option {name}; write options: {{{name}: ...}} in the sweep file" for name in needed),
        *(f"{node.name} has no option {name}; it has {known}" for name in unknown),
    ]


# --- copies in a run folder ----------------------------------------------------------------------


def copy_name(reference: str) -> str:
    """Name of the copy of a source in a run folder.

    >>> copy_name("my_rewards.py:brevity@0123456789abcdef")
    'my_rewards-0123456789abcdef.py'
    """
    found = _parts(reference)
    return f"{Path(found['file']).stem}-{found['digest']}.py"


def from_copies(data: Any, folder: Path) -> Any:
    """A copy of the configuration of a run, for another sweep: references name the copies in the run's folder.

    Args:
        data: the configuration as plain data.
        folder: the folder of the copies.
    """

    def copied(_path: str, found: re.Match[str]) -> str:
        return f"{(folder / copy_name(found[0])).absolute()}:{found['function']}" if found["digest"] else found[0]

    return _with_references(data, "", copied)


def write_copies(folder: Path, found: Iterable[Use], sources: Mapping[str, Source]) -> None:
    """Write the sources of a run into its folder. A copy that is missing or altered is written again.

    Args:
        folder: the folder of the copies.
        found: the functions of the run.
        sources: by digest; what is not in it is not written.
    """
    from core_hpc.store import manifests  # loads Polars, which reading a sweep file does not need

    for use in found:
        path, source = folder / copy_name(use.reference), sources.get(digest_of(use.reference))
        if source is None or (path.is_file() and path.read_bytes() == source.text.encode()):
            continue
        manifests.make_folder(folder)
        manifests.replace_file(path, source.text.encode())


def remember_copies(folder: Path, found: Iterable[Use], *, own: bool) -> None:
    """Read the sources of a run from its folder.

    Args:
        folder: the folder of the copies.
        found: the functions of the run.
        own: refuse copies that somebody else may have written at once. Otherwise only calling their
            functions is refused, so that a colleague can read the results of the run.

    Raises:
        StoreError: a copy is missing or was altered.
        OwnershipError: somebody else may have written it.
    """
    for use in found:
        digest = digest_of(use.reference)
        if digest in _KNOWN:
            continue
        path = folder / copy_name(use.reference)
        advice = f"Restore it, or start the sweep again where the file of {use.path} is unchanged"
        try:
            source = Source(_parts(use.reference)["file"], read_own(path).decode())
        except OwnershipError as e:
            if own:
                raise
            _REFUSED[digest] = e
            continue
        except (OSError, UnicodeDecodeError) as e:
            raise StoreError(f"{path}: cannot be read ({e}). {advice}") from e
        if source.digest != digest:
            raise StoreError(f"{path}: was altered after the run was started; nothing of it was run. {advice}")
        remember([source])
