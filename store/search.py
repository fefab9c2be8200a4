"""Search by meaning: which explanations are nearest to a text.

Similarity is the cosine of two embeddings by the same model, taken in SQL with every current explanation
(exact; no index). The embedder is passed in, so this folder needs no model.
"""

from collections.abc import Callable
from typing import Any

from .findings import Findings
from .records import Refused

# Each current explanation with the id of its newest vector by one embedder; the vectors themselves are joined
# last, because they are the bulk. A filter is null where it does not apply.
_CANDIDATES = """
    WITH newest AS (
        SELECT hypothesis, arg_max(id, (created_at, id)) AS embedding
        FROM embeddings WHERE model = $embedder GROUP BY hypothesis
    ), candidates AS (
        SELECT * FROM current_outcomes LEFT JOIN newest USING (hypothesis)
        WHERE sentence IS NOT NULL
          AND ($model IS NULL OR model = $model) AND ($site IS NULL OR site = $site)
    )
"""
_NEAREST = f"""{_CANDIDATES}
    SELECT e.unit, e.sign, e.explanation, e.rule, e.input_f1, e.input_f1_low, e.input_f1_high, e.floor_f1,
           e.verdict, list_cosine_similarity(v.vector, $wanted::FLOAT[]) AS similarity
    FROM candidates c
    JOIN embeddings v ON v.id = c.embedding
    JOIN explanations e ON e.unit = c.unit AND e.sign IS NOT DISTINCT FROM c.sign
    WHERE $min_score IS NULL OR e.input_f1 >= $min_score
    ORDER BY similarity DESC, e.unit, e.sign DESC LIMIT $top
"""
_COUNTS = f"""{_CANDIDATES}
    SELECT count(*) AS explained, count(*) - count(embedding) AS missing FROM candidates
"""


def search(
    findings: Findings,
    text: str,
    embed: Callable[[list[str]], list[list[float]]],
    model_name: str,
    *,
    model: str | None = None,
    site: str | None = None,
    min_score: float | None = None,
    top: int = 10,
) -> list[dict[str, Any]]:
    """The `top` explanations whose embedding by `model_name` is nearest to that of `text`, nearest first.

    Keys: unit, sign, explanation, rule, input_f1, input_f1_low, input_f1_high, floor_f1, verdict, similarity
    (cosine, −1 to 1). `model` and `site` keep units of that subject and site, `min_score` those with at
    least this input_f1. Explanations without an embedding by `model_name` cannot be ranked: `unembedded`
    counts them. Raises Refused for an empty text, for `top` < 1, and where none of them has an embedding.
    """
    if not text.strip():
        raise Refused("The search text is empty; write what the unit should respond to.")
    if top < 1:
        raise Refused(f"{top} results cannot be listed; ask for at least 1.")
    counts = _counts(findings, model_name, model, site)
    if counts["explained"] and counts["missing"] == counts["explained"]:
        raise Refused(
            f"None of the {counts['explained']} explanations has an embedding by {model_name}; search with "
            "the embedder of the run that made them."
        )
    wanted = embed([text])[0]
    asked = {"embedder": model_name, "model": model, "site": site, "min_score": min_score, "top": top}
    return findings.sql(_NEAREST, asked | {"wanted": wanted})


def unembedded(
    findings: Findings, model_name: str, *, model: str | None = None, site: str | None = None
) -> int:
    """How many current explanations `search` cannot see, because they have no embedding by `model_name`."""
    return int(_counts(findings, model_name, model, site)["missing"])


def why_none(findings: Findings, *, model: str | None, site: str | None, min_score: float | None) -> str:
    """One sentence on why a search found nothing: nothing is explained, or which filter keeps all of it out."""
    sql = "SELECT DISTINCT model, site FROM current_outcomes WHERE sentence IS NOT NULL ORDER BY model, site"
    known = findings.sql(sql)
    if not known:
        return "no explanations are recorded yet; lamplighter run makes some."
    for name, wanted in (("model", model), ("site", site)):
        there = list(dict.fromkeys(str(row[name]) for row in known))
        if wanted is not None and wanted not in there:
            return f"no explanation is of the {name} {wanted!r}; there are some of {', '.join(there)}."
    given = {"--model": model, "--site": site, "--min-score": min_score}
    named = ", ".join(f"{option} {value}" for option, value in given.items() if value is not None)
    lower = "" if min_score is None else " or lower the score"
    return f"no explanation passes the filters ({named}); leave one out{lower}."


def _counts(findings: Findings, embedder: str, model: str | None, site: str | None) -> dict[str, Any]:
    return findings.sql(_COUNTS, {"embedder": embedder, "model": model, "site": site})[0]
