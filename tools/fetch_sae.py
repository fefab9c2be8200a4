"""SAEs brought into a home by name: from a folder, from a hub's repository, or by the releases that sae-lens knows."""

import importlib.util
import shutil
import tempfile
from pathlib import Path

from ..store.records import Refused
from .features import CONFIG, SCALER, WEIGHTS, Coder, load_coder
from .units import coder_name

FILES = (CONFIG, WEIGHTS, SCALER)


def fetch_sae(name: str, source: str, home: Path) -> Coder:
    """Puts the SAE that `source` names into `home`/NAME and returns it, read and checked.

    source: a folder; REPOSITORY/FOLDER of a hub, as in org/repo/layer_8; or RELEASE/ID of sae-lens, if it is installed.
    Only configuration and safetensors are taken. Raises Refused for what is not there or is no SAE, and for a name that
    is taken.
    """
    target = home / coder_name(name)
    if target.exists():
        raise Refused(f"{target} is there already; choose another name, or delete that folder.")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(source) if Path(source).is_dir() else _fetched(source, Path(scratch))
        load_coder(place, name)                     # before anything is written
        partial = home / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for file in FILES:
            if (place / file).is_file():
                shutil.copyfile(place / file, partial / file)
        partial.rename(target)
    return load_coder(target, name)


def _fetched(source: str, scratch: Path) -> Path:
    """A folder with the files of what a hub or sae-lens calls `source`."""
    if importlib.util.find_spec("sae_lens") is not None:
        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

        release, _, sae_id = source.partition("/")
        if release in get_pretrained_saes_directory():
            return _by_release(release, sae_id, scratch)
    repository, folder = "/".join(source.split("/")[:2]), "/".join(source.split("/")[2:])
    if source.count("/") < 1 or source.startswith((".", "/")):
        raise Refused(
            f"{source!r} is no folder, and no REPOSITORY/FOLDER of a hub; a release of sae-lens needs "
            "`pip install 'lamplighter[sae]'`."
        )
    return _from_hub(repository, folder, scratch)


def _by_release(release: str, sae_id: str, scratch: Path) -> Path:
    from sae_lens import SAE

    try:
        SAE.from_pretrained(release, sae_id).save_model(scratch)
    except (OSError, ValueError) as error:
        raise Refused(f"sae-lens cannot give {release}/{sae_id} ({_first(error)}).") from error
    return scratch


def _from_hub(repository: str, folder: str, scratch: Path) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    for file in FILES:
        try:
            found = hf_hub_download(repository, f"{folder}/{file}" if folder else file)
        except (EntryNotFoundError, OSError, ValueError, HfHubHTTPError) as error:
            # That a file is not on this machine, and cannot be asked for, is an EntryNotFoundError too.
            if not isinstance(error, EntryNotFoundError) or isinstance(error, LocalEntryNotFoundError):
                raise Refused(
                    f"{repository} cannot be had ({_first(error)}); name a folder of this machine. "
                    "A release of sae-lens needs `pip install 'lamplighter[sae]'`."
                ) from error
            if file != SCALER:
                where = folder or "its root"
                raise Refused(f"{repository} holds no {file} in {where}; name the SAE's folder.") from error
            continue
        shutil.copyfile(found, scratch / file)
    return scratch


def _first(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


__all__ = ["fetch_sae"]
