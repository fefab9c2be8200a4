"""What findings remember of that on which a run rests, a sweep and a model, and embeddings of what it found."""

from ..store import records
from ..tools.models import installed
from ..tools.sweep import Sweep
from ..tools.toolbox import Toolbox
from .config import EMBEDDER, Home, load_embedder
from .find import embed_sentences


def sweep_record(sweep: Sweep, run: str | None = None) -> records.Sweep:
    """A finished sweep as the findings remember it."""
    facts = sweep.facts
    return records.Sweep(
        digest=sweep.digest, model=sweep.model, corpus=sweep.corpus, sites=sweep.sites, tokens=facts["tokens"],
        documents=facts["documents"], overlap=facts["overlap"], seconds=facts["seconds"], run=run,
        provenance=facts["provenance"],
    )  # fmt: skip


def model_record(toolbox: Toolbox, run: str | None = None) -> records.Model:
    """The loaded subject, its identities' errors and the tools it is offered."""
    subject = toolbox.subject
    return records.Model(
        name=subject.name, architecture=str(subject.config.model_type), layers=subject.n_layers,
        vocabulary=subject.vocabulary, checks=dict(subject.checks), tools=toolbox.offered(), run=run,
        provenance={"model": subject.digest, "tokenizer": subject.tokenizer_digest},
    )  # fmt: skip


def embed_missing(home: Home) -> int:
    """Embeds current explanations that have no embedding yet; 0, with nothing done, where MiniLM is not pulled."""
    if not installed(EMBEDDER):
        return 0
    rows = home.findings.sql(
        "SELECT o.hypothesis, o.sentence, o.run, o.investigation, o.unit, o.sign FROM current_outcomes o "
        "WHERE o.sentence IS NOT NULL AND NOT EXISTS "
        "(SELECT 1 FROM embeddings e WHERE e.hypothesis = o.hypothesis AND e.model = ?)",
        [EMBEDDER],
    )
    if rows:
        embed_sentences(home, rows, load_embedder())
    return len(rows)


__all__ = ["embed_missing", "model_record", "sweep_record"]
