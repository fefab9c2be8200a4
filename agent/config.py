"""Where things are and how they are opened: the home folder, its two stores, its sweeps, and the models."""

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..store.findings import Findings
from ..store.records import Evidence, Refused
from ..store.work import Work

if TYPE_CHECKING:
    from ..store.index import Index
    from ..store.snapshot import Snapshots
    from ..tools.masked import MaskedLM
    from ..tools.sweep import Sweep
    from ..tools.toolbox import Toolbox
    from ..tools.units import UnitId

MASKED_LM = "bert-tiny-mlm"
EMBEDDER = "minilm"
EMBEDDED_LLM = "qwen2.5-coder-1.5b"
Embed = Callable[[list[str]], list[list[float]]]


@dataclass(frozen=True)
class Home:
    """The folder that holds a project's findings, work and sweeps."""

    path: Path

    @classmethod
    def resolve(cls, given: Path | str | None) -> "Home":
        """`--home`, else LAMPLIGHTER_HOME (an empty one is none), else ./lamplighter-home.

        Raises Refused if that is a file, or if `given` is an empty text: that would be the current folder.
        """
        if given == "":
            raise Refused("the home is an empty path; name a folder with --home, or leave --home out.")
        path = Path(given or os.environ.get("LAMPLIGHTER_HOME") or "lamplighter-home")
        if path.exists() and not path.is_dir():
            raise Refused(f"the home {str(path)!r} is a file; name a folder with --home.")
        return cls(path.absolute())

    @cached_property
    def work(self) -> Work:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refused(f"the home {str(self.path)!r} cannot be made ({error.strerror}); name another.") from error
        return Work(self.path / "work.sqlite")

    @cached_property
    def findings(self) -> Findings:
        return Findings(self.path / "findings.duckdb")

    @cached_property
    def snapshots(self) -> "Snapshots":
        """Copies of the findings for free SQL."""
        from ..store.snapshot import Snapshots

        return Snapshots(self.findings, self.path / "snapshots")

    @cached_property
    def index(self) -> "Index":
        """What is searched: the explanations, with the embedder's vectors of them."""
        from ..store.index import Index

        return Index(self.findings, EMBEDDER, self.path / "snapshots")

    @property
    def saes(self) -> Path:
        """The folder of the SAEs that were added to this home, one folder each."""
        return self.path / "saes"

    @property
    def pictures(self) -> Path:
        """The folder of the pictures that evidence names by the sha256 of their bytes."""
        return self.path / "pictures"

    def keep(self, picture: bytes) -> str:
        """Stores a PNG under its digest, which it returns."""
        digest = hashlib.sha256(picture).hexdigest()
        self.pictures.mkdir(parents=True, exist_ok=True)
        draft = self.pictures / f".{digest}.{os.getpid()}"
        draft.write_bytes(picture)
        os.replace(draft, self.pictures / f"{digest}.png")
        return digest

    def picture(self, evidence: Evidence) -> str | None:
        """Where the PNG of an experiment is, if it made one."""
        return None if evidence.artifact is None else str(self.pictures / f"{evidence.artifact}.png")

    def sweep_for(self, unit: "UnitId", digest: str) -> "Sweep":
        """The largest sweep of a unit's site, of this `Subject.site_digest`; raises Refused where there is none."""
        from ..tools.sweep import find_sweep, swept_before

        found = find_sweep(self.path, digest, unit.site)
        if found is None:
            how = "swept by another version" if swept_before(self.path, digest, unit.site) else "not swept"
            site = unit.site if unit.kind != "attn" else f"{unit.layer}-mlp"     # for its text: heads are not swept
            raise Refused(
                f"{site} of {unit.model} was {how} in {self.path}; "
                f"run `lamplighter sweep --model {unit.model} --sites {site}` first."
            )
        return found

    def masked(self, subject_digest: str) -> "MaskedLM":
        """The masked LM, with the mode (masked or unmasked) that was measured for this subject, if it was."""
        from ..tools.masked import MaskedLM

        return MaskedLM.load(MASKED_LM, mode=self.work.recall(_mode_key(subject_digest)))

    def toolbox(self, model: str, device: str | None = None, dtype: str | None = None) -> "Toolbox":
        """Every tool on one subject, its evidence kept in this home."""
        from ..tools.features import find_coder
        from ..tools.subject import Subject
        from ..tools.toolbox import Toolbox

        subject = Subject.load(model, device=device, dtype=dtype)
        subject.find_coder = partial(find_coder, places=(self.saes,))
        held: list[MaskedLM] = []
        loading = threading.Lock()       # workers may ask at a time
        sweeps: dict[str, Sweep] = {}

        def masked() -> "MaskedLM":
            with loading:
                if not held:
                    held.append(self.masked(subject.digest))
                    self.work.remember(_mode_key(subject.digest), held[0].choose_mode(subject)["mode"])
            return held[0]

        def sweep(unit: "UnitId") -> "Sweep":
            if unit.site not in sweeps:
                sweeps[unit.site] = self.sweep_for(unit, subject.site_digest(unit.site))
            return sweeps[unit.site]

        return Toolbox(subject, sweep, masked, self.work.recall, self.work.remember, self.keep)


def _mode_key(subject_digest: str) -> str:
    return "masked-mode:" + hashlib.sha256(f"{MASKED_LM} {subject_digest}".encode()).hexdigest()


def load_embedder() -> Embed:
    """Texts → unit vectors [384] of the embedded MiniLM; raises Refused where it is not pulled."""
    from ..tools.models import folder

    place = folder(EMBEDDER)
    from sentence_transformers import SentenceTransformer

    safe = {"use_safetensors": True}
    encoder = SentenceTransformer(str(place), device="cpu", local_files_only=True, model_kwargs=safe)

    def embed(texts: list[str]) -> list[list[float]]:
        vectors = encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        return [[float(x) for x in vector] for vector in vectors]

    return embed
