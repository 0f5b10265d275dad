"""Repositories of the Hugging Face hub: where they are in its cache, and how they are downloaded.

In: a name, a revision and patterns of files. Out: the folder of a snapshot, or the message that names what to do.
"""

from __future__ import annotations

import re
from pathlib import Path

from core_hpc.common.errors import InputError
from core_hpc.common.hub import why_no_hub
from core_hpc.models.cache import UNWRITABLE, unwritable
from core_hpc.models.folder import MISTRAL_FILES

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def download_command(name: str, revision: str | None) -> str:
    """The command that downloads a repository of the hub."""
    return f"hf download {name}" + (f" --revision {revision}" if revision else "")


def cached_snapshot(name: str, revision: str | None, file: str = "config.json") -> Path | None:
    """The snapshot of a repository in the cache of the hub, if it has this file."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(name, file, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def snapshot(name: str, revision: str | None, patterns: list[str], *, what: str, instead: str) -> Path:
    """Snapshot of a hub repository in the cache of huggingface.

    Args:
        name: the repository.
        revision: None for its branch main.
        patterns: the files to download.
        what: begins the message of an error.
        instead: what a user may set who cannot download it.

    Raises:
        InputError: it is neither in the cache nor on the hub.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    why = why_no_hub()
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=list(MISTRAL_FILES),
                local_files_only=why is not None,
            )
        )
    except errors.GatedRepoError as e:
        raise InputError(
            f"{what}: its owner requires that you accept terms; do so on its hub page, then run: hf auth login"
        ) from e
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as e:
        raise InputError(
            f"{what}: not found on the hub, and there is no such folder here: {str(e).splitlines()[0]}"
        ) from e
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as e:
        if isinstance(e, OSError) and e.errno in UNWRITABLE:
            raise InputError(f"{what}: {unwritable(e, constants.HF_HUB_CACHE, 'HF_HOME')}") from e
        reason = why or f"the hub cannot be reached ({type(e).__name__})"
        raise InputError(
            f"{what}: not in the local cache, and {reason}; run `{download_command(name, revision)}` on a machine with "
            f"network access (and share HF_HOME), or set {instead}"
        ) from e
