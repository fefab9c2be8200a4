"""`lamplighter experiment NAME`: runs a study of this folder and prints its tables and claims."""

import ast
import json
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..agent.cli import SUBJECT, CorpusOption, DeviceOption, HomeOption, JsonOption, ModelOption
from ..agent.config import Home
from ..agent.progress import ATLAS, Lines, Live, progress
from ..store.records import Refused
from ..tools.measures import SIDES
from ..tools.units import coder_name

MISSED = 5      # exit code: a claim does not hold
BENCHES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py")))


class WithParts(TyperCommand):
    """A command whose --help ends with what each bench says of its parts."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        self.epilog = _about()
        super().format_epilog(ctx, formatter)


def _about() -> str:
    """The benches' own texts: read and not imported, as that would take torch."""
    texts = {name: Path(__file__).with_name(f"{name}.py").read_text("utf-8") for name in BENCHES}
    told = {name: ast.get_docstring(ast.parse(text)) or "" for name, text in texts.items()}
    # \b keeps the lines of a paragraph as they are.
    return "\n\n".join(f"{name}: " + doc.replace("\n\n", "\n\n\b\n") for name, doc in told.items())


def experiment(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(BENCHES)}.")],
    only: Annotated[str, typer.Option("--only", help="Parts to run, comma-separated (default: all).")] = "",
    seed: Annotated[int, typer.Option("--seed", help="Draws units, texts and rules.")] = 0,
    size: Annotated[float, typer.Option("--size", min=0.01, help="Share of the full size, for a quick look.")] = 1.0,
    home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Measures what the README claims; exit code 5 when a claim does not hold."""
    from .report import Report  # brings statistics, which take a second

    if name not in BENCHES:
        raise Refused(f"{name!r} is no experiment; there are {', '.join(BENCHES)}.")
    parts = import_module(f".{name}", __package__).PARTS
    chosen = [part.strip() for part in only.split(",") if part.strip()] or list(parts)
    unknown = [part for part in chosen if part not in parts]
    if unknown:
        raise Refused(f"{unknown[0]!r} is no part of {name}; its parts are {', '.join(parts)}.")
    report = Report(name)
    with progress() as live:
        for part in chosen:
            report.add(*parts[part](Home.resolve(home).path / "experiments", seed, size, partial(_tell, live)))
    if as_json:
        print(report.to_json())
    else:
        report.show()
    if not report.holds:
        raise typer.Exit(MISSED)


def saes_train(
    name: Annotated[str, typer.Argument(help="What it is to be called, as in 8-resid:NAME.")],
    site: Annotated[str, typer.Option("--site", help="A residual stream, as in 8-resid.")],
    model: ModelOption = SUBJECT, corpus: CorpusOption = "builtin",
    features: Annotated[int, typer.Option("--features", min=2, help="Features to learn.")] = 4608,
    k: Annotated[int, typer.Option("--k", min=1, help="Features that are on at a token.")] = 32,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens to learn from, again if need be.")] = 2_000_000,
    seed: Annotated[int, typer.Option("--seed", help="Draws the first weights and the order of the text.")] = 0,
    device: DeviceOption = None, home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Trains a TopK SAE on the explain side of a corpus, from where it was stopped, and judges it on the score side."""
    from ..agent import show
    from ..tools.corpus import load_corpus
    from ..tools.subject import Subject
    from .train_sae import Recipe, train_sae

    recipe = Recipe(site, features, k, tokens, seed=seed)
    text, subject = load_corpus(corpus), Subject.load(model, device=device)
    with progress() as live:
        card = train_sae(subject, text, recipe, Home.resolve(home).saes / coder_name(name), partial(_tell, live))
    if as_json:
        print(json.dumps(card))
    else:
        show.sae_table(card["judged"] | {"corpus": text.name, "warnings": []})


def _tell(live: Live | Lines, what: str, done: int, total: int) -> None:
    """A sweep's own stages count tokens, all else units or runs."""
    tell = live.sweeping if what in (*SIDES, ATLAS, "tokenise") else live.counting
    tell(what, done, total)
