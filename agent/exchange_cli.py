"""`export`, `import` and `score`: commands for what comes from other tools and goes to them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..store.exchange import Wanted
from ..store.plain import bounded, claimed, clean, number
from ..store.records import VERDICTS, Refused
from . import show as shown
from .cli import (
    BUDGET,
    DeviceOption,
    DtypeOption,
    HomeOption,
    JsonOption,
    JudgeOption,
    LLMTokensOption,
    MinutesOption,
    UsdOption,
    _deliver,
    _emit,
    app,
)
from .config import Home
from .progress import progress


class Exports(StrEnum):
    """Formats that can be written."""

    neuronpedia = "neuronpedia"
    delphi = "delphi"
    parquet = "parquet"
    jsonl = "jsonl"


class Imports(StrEnum):
    """Formats that can be read."""

    delphi = "delphi"
    neuronpedia = "neuronpedia"
    openai = "openai"


OnlyModel = Annotated[str | None, typer.Option("--model", help="Only units of this model.")]
OnlySite = Annotated[str | None, typer.Option("--site", help="Only units of this site.")]


@app.command("export")
def export_home(
    form: Annotated[Exports, typer.Argument(metavar="FORMAT", help="neuronpedia, delphi, parquet or jsonl.")],
    folder: Annotated[
        Path | None, typer.Argument(help="A new folder (default: exports/FORMAT-TIME in the home).")
    ] = None,
    model: OnlyModel = None, site: OnlySite = None,
    verdict: Annotated[str | None, typer.Option("--verdict", help=f"Only units of: {', '.join(VERDICTS)}.")] = None,
    no_text: Annotated[bool, typer.Option("--no-text", help="Leave out all text of the corpus, and rules.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, cut or left out.")] = False,
    licence: Annotated[
        str, typer.Option("--licence", help="Licence on the dataset card, as in cc-by-4.0.")
    ] = "unknown",
    model_id: Annotated[str | None, typer.Option("--model-id", help="What Neuronpedia calls the model.")] = None,
    source_set: Annotated[str | None, typer.Option("--source-set", help="The set of sources there.")] = None,
    device: DeviceOption = None, dtype: DtypeOption = None, home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Writes explanations, or every record, in a format that other tools read."""
    from .exchange import export

    if verdict is not None and verdict not in VERDICTS:
        raise Refused(f"{verdict!r} is no verdict; choose one of {', '.join(VERDICTS)}.")
    found = export(
        Home.resolve(home), form.value, folder, Wanted(model, site, verdict), no_text=no_text, dry=dry_run,
        licence=licence, model_id=model_id, source_set=source_set, device=device, dtype=dtype,
    )  # fmt: skip
    _emit(found, as_json, _exported)


def _exported(facts: dict[str, Any]) -> None:
    where = f"written to {facts['folder']}" if facts["folder"] else "nothing was written"
    shown.say(f"{facts['format']}: {where}{'' if facts['text'] else ', without text'}")
    for name, n in facts.get("rows", {}).items():
        shown.say(f"{name}: {n:,} rows")
    if "explanations" in facts:
        shown.say(f"{facts['explanations']:,} explanations")
    if calls := facts.get("calls"):
        shown.plain_table(calls)
    for name, n in facts.get("dropped", {}).items():
        shown.say(f"left empty: {name} in {n:,} rows")
    for note in facts.get("notes", []):
        shown.say(f"{note['what']}: {note['count']:,}")


@app.command("import")
def import_explanations(
    form: Annotated[Imports, typer.Argument(metavar="FORMAT", help="delphi, neuronpedia or openai.")],
    path: Annotated[Path, typer.Argument(help="A run of delphi, or files or folders of the others.")],
    model: Annotated[str | None, typer.Option("--model", help="What the model is called here.")] = None,
    site: Annotated[
        str | None, typer.Option("--site", help="The site of all units, as in 5-mlp or 8-resid:NAME.")
    ] = None,
    coder: Annotated[str | None, typer.Option("--coder", help="What the SAE is called here.")] = None,
    home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Brings in explanations that other tools made, with what is claimed of them; `score` measures them here."""
    from .exchange import bring_in

    place = Home.resolve(home)
    found = bring_in(place, form.value, path, model=model, site=site, coder=coder)
    _emit(found, as_json, _imported)
    _deliver(place)


def _imported(facts: dict[str, Any]) -> None:
    shown.say(
        f"{facts['explanations']:,} explanations of {facts['source']} imported, {facts['known']:,} were here before; "
        f"{facts['claimed_scores']:,} scores that it claims; texts of {facts['units_with_texts']:,} units"
    )
    shown.say(f"which text they were made from: {facts['explain_text']}")
    if facts["left_out"]:
        shown.table(f"left out: {facts['left_out']:,}", ("file", "line", "why"), [
            (row["file"], row["line"], row["why"]) for row in facts["named"]
        ])  # fmt: skip


@app.command("score")
def score(
    source: Annotated[Imports | None, typer.Option("--source", help="Only explanations of this source.")] = None,
    model: OnlyModel = None, site: OnlySite = None, judge: JudgeOption = None, minutes: MinutesOption = None,
    llm_tokens: LLMTokensOption = None, usd: UsdOption = None, device: DeviceOption = None, dtype: DtypeOption = None,
    home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Scores imported explanations by a judge, on text of our own choice, and decides on them by our rule."""
    from .score_imported import Asked, score_imported

    asked = Asked(
        source=None if source is None else source.value, model=model, site=site, judge=judge, minutes=minutes,
        llm_tokens=llm_tokens, usd=usd, device=device, dtype=dtype,
    )  # fmt: skip
    with progress() as live:
        found = score_imported(Home.resolve(home), asked, live)
    _emit(found, as_json, _scored)
    if found["status"] == "budget":
        raise typer.Exit(BUDGET)


def _scored(facts: dict[str, Any]) -> None:
    heads = ("unit", "source", "explanation", "claimed by source", "detection F1 [95 %]", "floor", "verdict", "ours")
    shown.table(f"scored by {facts['judge']}", heads, [
        (shown.signed(row), row["source"], row["explanation"], claimed(row["claimed"]),
         bounded(row["detection"], row["detection_low"], row["detection_high"]), number(row["floor"]),
         row["verdict"], _ours(row))
        for row in facts["scored"]
    ])  # fmt: skip
    for row in facts["left_out"]:
        shown.say(f"left out ({row['count']:,}): {clean(row['why'])}")
    if facts["waiting"]:
        shown.say(f"the budget was reached; {facts['waiting']:,} wait, and the same command goes on from there.")


def _ours(row: dict[str, Any]) -> str:
    if row["ours_verdict"] is None:
        return "—"
    return f"{row['ours_verdict']}, F1 {bounded(row['ours_f1'], row['ours_low'], row['ours_high'])}"
