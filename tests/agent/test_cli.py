"""The command line: what it prints, how it ends, and one clear sentence for whatever goes wrong."""

import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pytest

from lamplighter.agent import cli as commands
from lamplighter.agent import find, night, show
from lamplighter.agent.config import EMBEDDER, Home
from lamplighter.agent.request import Outcome
from lamplighter.store import findings as findings_module
from lamplighter.store import snapshot
from lamplighter.store import work as work_module
from lamplighter.store.records import Embedding, Failure, Hypothesis
from lamplighter.store.snapshot import Snapshots
from lamplighter.testing import ScriptedEndpoint
from lamplighter.tools.sweep import Sweep
from lamplighter.tools.toolbox import TOOL_NAMES

CONTRACT = {"ok", "tool", "unit", "summary", "rows", "artifact", "checks", "warnings", "cost"}


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Said]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """`main()` in this process, as its entry point calls it."""
    from transformers.utils import logging

    before = signal.getsignal(signal.SIGTERM)
    logging.disable_progress_bar()     # a fresh process reads this from the environment that main() sets

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["lamplighter", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            commands.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Said(int(end.value.code or 0), out, err)

    yield call
    signal.signal(signal.SIGTERM, before)
    logging.enable_progress_bar()


def unit(project: Any, name: str) -> str:
    return f"{project.model}/{name}"


def refused(said: Said, *words: str) -> None:
    """Exit code 1, nothing on stdout, and one sentence on stderr that holds the words."""
    assert said.code == 1 and said.out == "", said
    (line,) = said.err.splitlines()
    assert line.startswith("lamplighter: ") and all(word in line for word in words), line


# Bad input


BAD_TOOL = {
    "no unit": (["activate", "0-mlp"], ["'0-mlp' is no unit", "MODEL/SITE/INDEX"]),
    "no site": (["activate", "MODEL/mlp/1"], ["'mlp' is no site", "5-mlp"]),
    "range": (["activate", "MODEL/0-mlp/0..3"], ["names 4 units where one is wanted"]),
    "index": (["activate", "MODEL/0-mlp/9", "--text", "a car"], ["0-mlp/9 is out of range", "units 0 to 8"]),
    "layer": (["activate", "MODEL/2-mlp/0", "--text", "a car"], ["'2-mlp' is out of range", "layers 0 to 1"]),
    "head": (["activate", "MODEL/0-attn/0", "--text", "a car"], ["is a head"]),
    "tool": (["guess", "MODEL/0-mlp/0"], ["'guess' is no tool", "minimal_example"]),
    "no JSON": (["activate", "MODEL/0-mlp/0", "--args", "{text}"], ["--args is no JSON", '{"mode": "delete"}']),
    "no object": (["activate", "MODEL/0-mlp/0", "--args", "[1]"], ["--args is '[1]'", "JSON object"]),
    "option": (["activate", "MODEL/0-mlp/0", "--args", '{"words": 1}'], ["words", "its options are text, ids"]),
    "type": (["activate", "MODEL/0-mlp/0", "--args", '{"ids": "a"}'], ["activate: ids"]),
    "mode": (["minimal_example", "MODEL/0-mlp/0", "--text", "a car", "--args", '{"mode": "x"}'], ["mode 'x'"]),
    "no text": (["activate", "MODEL/0-mlp/0"], ["give either text or ids"]),
    "empty": (["activate", "MODEL/0-mlp/0", "--text", ""], ["the text is empty"]),
    "blank": (["minimal_example", "MODEL/0-mlp/0", "--text", "  \n"], ["the text is empty"]),
    "silent": (["minimal_example", "MODEL/0-mlp/0", "--text", "the in an"], ["silent on this text"]),
    "other sign": (["minimal_example", "MODEL/0-mlp/0-", "--text", "a car"], ["0-mlp/0- is silent on this text"]),
    "long": (["activate", "MODEL/0-mlp/0", "--text", "the " * 200], ["tokens and", "sees 128", "shorten it"]),
    "token": (["activate", "MODEL/0-mlp/0", "--args", '{"ids": [0, 999]}'], ["token id 999", "0 to 319"]),
    "no sweep": (["top_examples", "MODEL/1-mlp/0"], ["1-mlp of", "was not swept", "lamplighter sweep --model"]),
    "masked LM": (["substitute", "MODEL/0-mlp/0", "--text", "a car"], ["lamplighter models pull bert-tiny-mlm"]),
    "model": (["activate", "no-such-model/0-mlp/0", "--text", "a"], ["'no-such-model' cannot be loaded"]),
    "not pulled": (["activate", "smollm2-135m/0-mlp/0", "--text", "a"], ["lamplighter models pull smollm2-135m"]),
    "dtype": (["activate", "MODEL/0-mlp/0", "--dtype", "int8"], ["dtype 'int8' is unknown"]),
    "no device": (["activate", "MODEL/0-mlp/0", "--text", "a car", "--device", "meta"], ["device 'meta'"]),
    "device": (["activate", "MODEL/0-mlp/0", "--device", "toaster"], ["device 'toaster'"]),
}


@pytest.mark.parametrize("case", BAD_TOOL)
def test_a_tool_that_cannot_run_says_why_in_one_sentence(cli: Cli, project: Any, finished: Any, case: str) -> None:
    arguments, words = BAD_TOOL[case]
    asked = [a.replace("MODEL", project.model) if i == 1 else a for i, a in enumerate(arguments)]
    before = finished.home.findings.sql("SELECT count(*) AS n FROM evidence")
    refused(cli("tool", *asked, "--home", finished.home.path), *words)
    assert finished.home.findings.sql("SELECT count(*) AS n FROM evidence") == before


def corpora(folder: Path) -> dict[str, tuple[Path, list[str]]]:
    """Corpora that cannot be read, and what is said of them."""
    for name in ("none", "blank", "latin", "rows", "small", "image"):
        (folder / name).mkdir()
    (folder / "blank" / "a.txt").write_text(" \n\n")
    (folder / "latin" / "a.txt").write_bytes("Caf\xe9 au lait".encode("latin-1"))
    (folder / "rows" / "a.jsonl").write_text('{"text": "fine"}\n{"text": 5}\n')
    (folder / "small" / "a.txt").write_text("one text alone")
    (folder / "image" / "a.png").write_bytes(b"\x89PNG")
    return {
        "missing": (folder / "nowhere", ["is no corpus", "builtin and local"]),
        "none": (folder / "none", ["holds no .txt"]),
        "blank": (folder / "blank", ["is empty"]),
        "latin": (folder / "latin", ["is not UTF-8 text", "0xe9 at offset 3", "iconv"]),
        "rows": (folder / "rows", ["line 2", "a string called text"]),
        "small": (folder / "small", ["has no tune text", "give more documents"]),
        "image": (folder / "image" / "a.png", ["cannot be read as a corpus"]),
        "builtin": (Path("builtin"), ["lamplighter models pull builtin-corpus"]),
    }


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_a_corpus_that_cannot_be_read_is_named(cli: Cli, project: Any, tmp_path: Path, command: str) -> None:
    home = tmp_path / "home"
    for corpus, words in corpora(tmp_path).values():
        chosen = ["--sites", "0-mlp"] if command == "sweep" else ["--units", "0-mlp/4"]
        asked = [command, "--model", project.model, "--corpus", corpus, *chosen]
        refused(cli(*asked, "--home", home), *words)
    assert cli("status", "--json", "--home", home).json == []


def test_a_run_that_cannot_begin_leaves_no_run(cli: Cli, project: Any, tmp_path: Path) -> None:
    asked = ["run", "--planner", "playbook", "--corpus", project.corpus, "--home", tmp_path / "home"]
    model = ["--model", project.model]
    refused(cli(*asked), "lamplighter models pull smollm2-135m")
    refused(cli(*asked, *model, "--planner", "oracle"), "'oracle' is unknown", "playbook")
    refused(cli(*asked, *model, "--units", "0-mlp/9"), "out of range")
    refused(cli(*asked, *model, "--units", "0-mlp/x"), "'0-mlp/x' is no unit")
    refused(cli(*asked, *model, "--units", "auto"), "'auto' is no unit choice", "auto:20")
    refused(cli(*asked, *model, "--units", "auto:2", "--sites", "0-attn"), "0-attn holds heads")
    assert cli("status", "--json", "--home", tmp_path / "home").json == []


def test_reading_what_is_not_there(cli: Cli, finished: Any, project: Any, tmp_path: Path) -> None:
    home, empty = ["--home", finished.home.path], ["--home", tmp_path / "nothing"]
    for asked in (["sql", "SELECT 1"], ["show", "m/0-mlp/1"], ["query", "cars"], ["replay", "x"]):
        refused(cli(*asked, *empty), "Nothing is recorded", "lamplighter run")
    assert not (tmp_path / "nothing").exists()
    other = unit(project, "0-mlp/8")
    command = f"`lamplighter run --model {project.model} --units {other}`"
    refused(cli("show", other, *home), f"nothing is recorded about '{other}'", command)
    refused(cli("show", "garbage", *home), "'garbage' is no unit", "MODEL/SITE/INDEX")
    refused(cli("replay", "x", *home), "no evidence 'x'")
    refused(cli("query", "cars", "--by", "meaning", *home), "lamplighter models pull minilm")
    refused(cli("query", " ", *home), "search text is empty")
    refused(cli("query", *home), "for a text or for units like one")
    refused(cli("query", "--like", other, *home), f"No explanation of '{other}' is recorded")
    refused(cli("query", "cars", "--kind", "neuron", *home), "kind 'neuron' is none that there is", "mlp, attn")
    refused(cli("models", "pull", "gpt-9"), "gpt-9")


def test_sql_that_is_no_select_is_refused(cli: Cli, finished: Any) -> None:
    home = ["--home", finished.home.path]
    refused(cli("sql", "DROP TABLE scores", *home), "write one SELECT")
    refused(cli("sql", "SELECT 1; SELECT 2", *home), "write one SELECT")
    refused(cli("sql", "", *home), "write one SELECT")
    refused(cli("sql", "SELECT wrong FROM scores", *home), "The query was refused", "wrong")
    refused(cli("sql", "SELECT * FROM read_text('/etc/passwd')", *home), "The query reads or writes a file")
    refused(cli("sql", "SELECT count(*) FROM range(10000000000) a, range(99)", "--seconds", "0.5", *home), "0.5 s")
    refused(cli("sql", "SELECT (", *home), "The query was refused")
    refused(cli("sql", "FROM nope", *home), "nope does not exist; `lamplighter sql \"SHOW TABLES\"` names those")
    assert cli("sql", "SELECT count(*) AS n FROM scores", *home).json == [{"n": 35}]


def test_errors_as_json_are_an_object_and_a_line(cli: Cli, project: Any, finished: Any) -> None:
    said = cli("tool", "activate", unit(project, "0-mlp/9"), "--text", "a", "--json", "--home", finished.home.path)
    assert said.code == 1 and said.json.keys() == {"ok", "error", "hint"}
    assert said.json["ok"] is False and said.json["error"].endswith("has units 0 to 8.") and said.json["hint"] is None
    assert len(said.err.splitlines()) == 1
    said = cli("sql", "DROP TABLE scores", "--json", "--home", finished.home.path)
    assert "is DROP" in said.json["error"] and said.json["hint"] == "write one SELECT."
    said = cli("run", "--planner", "playbook", "--corpus", project.corpus, "--json", "--home", finished.home.path)
    assert said.json["error"] == "smollm2-135m is not in the cache"
    assert said.json["hint"].startswith("fetch it with `lamplighter models pull smollm2-135m`")


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"], ["run", "--fast"], ["tool", "--fast"], ["sql"], ["show"], ["models", "push"],
        ["run", "--minutes", "-1"], ["run", "--minutes", "soon"], ["run", "--tokens", "0"],
        ["query", "x", "--top", "0"], ["try", "unit"], ["status", "extra"],
    ],
)  # fmt: skip
def test_what_the_option_parser_refuses_is_2(cli: Cli, arguments: list[str]) -> None:
    said = cli(*arguments)
    assert said.code == 2 and said.out == "" and "Usage: " in said.err


# Files that cannot be used


def spoil_findings(home: Path) -> None:
    (home / "findings.duckdb").write_bytes(b"no database" * 1000)


def spoil_header(home: Path) -> None:
    with (home / "findings.duckdb").open("r+b") as file:
        file.truncate(5000)


def newer_findings(home: Path) -> None:
    with duckdb.connect(str(home / "findings.duckdb")) as con:
        con.execute("INSERT INTO schema_version VALUES (99, now()::TIMESTAMP)")


def spoil_work(home: Path) -> None:
    for path in home.glob("work.sqlite-*"):
        path.unlink()
    (home / "work.sqlite").write_bytes(b"no database" * 1000)


def newer_work(home: Path) -> None:
    with sqlite3.connect(home / "work.sqlite") as con:
        con.execute("PRAGMA user_version = 99")
    con.close()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_findings, ["findings.duckdb is damaged", "move it"]),
        (spoil_header, ["findings.duckdb", "damaged"]),
        (newer_findings, ["newer version of lamplighter", "schema is 99"]),
    ],
)
def test_findings_that_cannot_be_used(
    cli: Cli, copied: Any, project: Any, spoil: Callable[[Path], None], words: list[str]
) -> None:
    """Each command says so; doctor too; and once the file is out of the way, the same run fills a new one."""
    spoil(copied.path)
    home, asked = ["--home", copied.path], [*project.arguments[:-1], "0-mlp/4"]
    target = unit(project, "0-mlp/1")
    for command in (["sql", "SELECT 1"], ["show", target], ["query", "cars"], ["replay", "x"], project.arguments):
        refused(cli(*command, *home), *words)
    checked = cli("doctor", "--json", *home)
    (row,) = (row for row in checked.json if row["what"] == "findings")
    assert checked.code == 1 and row["state"] == "broken" and words[0] in row["found"]
    assert cli("status", *home).code == 0
    (copied.path / "findings.duckdb").rename(copied.path / "aside")
    assert cli(*asked, *home).code == 0
    assert [row["verdict"] for row in cli("sql", "SELECT verdict FROM explanations", *home).json] == ["abstained"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_work, ["work.sqlite is damaged", "move it"]),
        (newer_work, ["newer version of lamplighter", "schema is 99"]),
    ],
)
def test_work_that_cannot_be_used(
    cli: Cli, copied: Any, project: Any, spoil: Callable[[Path], None], words: list[str]
) -> None:
    copied.work.close()
    spoil(copied.path)
    home = ["--home", copied.path]
    for command in (["status"], project.arguments, ["try", unit(project, "0-mlp/0"), "a car"]):
        refused(cli(*command, *home), *words)
    checked = cli("doctor", "--json", *home)
    assert checked.code == 1 and [row["what"] for row in checked.json if row["state"] == "broken"] == ["work"]
    assert len(cli("sql", "SELECT * FROM explanations", *home).json) == 5
    for path in copied.path.glob("work.sqlite*"):
        path.unlink()
    assert cli("status", "--json", *home).json == []
    assert cli("try", unit(project, "0-mlp/0"), "a car", *home).code == 0


def test_findings_held_by_another_process(
    cli: Cli, copied: Any, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who holds them is named; an experiment that was run meanwhile is shown, recorded later, and no failure."""
    monkeypatch.setattr(findings_module, "WAIT_SECONDS", 0.2)
    code = (
        "import duckdb, sys; con = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.readline()"
    )
    command = [sys.executable, "-c", code, str(copied.findings.path)]
    home, swept = ["--home", copied.path], ["--model", project.model, "--corpus", project.corpus, "--sites", "0-mlp"]
    shutil.rmtree(copied.path / "snapshots", ignore_errors=True)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        refused(cli("sql", "SELECT 1", *home), f"in use by process {holder.pid}")
        for asked in (["try", unit(project, "0-mlp/0"), "a car"], ["sweep", *swept]):
            said = cli(*asked, "--json", *home)
            (line,) = said.err.splitlines()[-1:]
            assert said.code == 0 and said.json and f"because {copied.findings.path} is in use by" in line
            assert line.startswith("lamplighter: the record waits in the outbox") and "sweep or run delivers it" in line
        holder.communicate("\n")
    assert cli("sql", "SELECT 1 AS one", *home).json == [{"one": 1}]
    assert cli("try", unit(project, "0-mlp/0"), "a red car", *home).code == 0
    rows = cli("sql", "SELECT arguments->>'text' AS text FROM evidence WHERE tool = 'activate'", *home).json
    assert sorted(row["text"] for row in rows) == ["a car", "a red car"]


def test_work_held_by_another_process(cli: Cli, copied: Any, project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "BUSY_SECONDS", 0.2)
    home, asked = ["--home", copied.path], ["try", unit(project, "0-mlp/0"), "a car"]
    holder = sqlite3.connect(copied.path / "work.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    refused(cli(*asked, *home), "work.sqlite has been in use by another process", "run the same command again")
    holder.execute("ROLLBACK")
    holder.close()
    assert cli(*asked, *home).code == 0


def test_a_reading_is_shown_though_the_findings_are_damaged(cli: Cli, copied: Any, project: Any) -> None:
    spoil_findings(copied.path)
    said = cli("try", unit(project, "0-mlp/0"), "a car", "--json", "--home", copied.path)
    assert said.code == 1 and said.json["checks"]["peak"] > 1
    assert "waits in the outbox" in said.err and "is damaged" in said.err and said.err.count("\n") == 1


def test_an_empty_home_is_not_this_folder(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["status"], ["run"], ["show", "m/0-mlp/1"]):
        refused(cli(*command, "--home", ""), "the home is an empty path", "leave --home out")
    assert list(tmp_path.iterdir()) == []
    assert cli("status", "--json", "--home", ".").json == []
    monkeypatch.setenv("LAMPLIGHTER_HOME", "")
    assert Home.resolve(None).path == tmp_path / "lamplighter-home"


def test_a_home_that_is_no_folder(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(cli("status", "--home", tmp_path / "file"), "is a file", "--home")
    below = cli("run", "--planner", "llm", "--endpoint", "http://127.0.0.1:1", "--home", tmp_path / "file" / "below")
    refused(below, "cannot be made")


# What it prints


def test_the_home_is_the_option_else_the_variable_else_here(
    cli: Cli, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("status", "--json").json == [] and not (tmp_path / "lamplighter-home").exists()
    monkeypatch.setenv("LAMPLIGHTER_HOME", str(finished.home.path))
    assert len(cli("status", "--json").json) == 1
    assert cli("status", "--json", "--home", tmp_path / "other").json == []


def test_status(cli: Cli, finished: Any, tmp_path: Path) -> None:
    (row,) = cli("status", "--json", "--home", finished.home.path).json
    counted = {"units": 5, "queued": 0, "running": 0, "done": 5, "failed": 0, "failures": {}, "workers": []}
    assert row["run"] == finished.outcome.run and row["status"] == "done" and not row["paused"]
    assert counted.items() <= row.items() and row["units_an_hour"] > 0 and row["free_bytes"] > 0
    assert row["llm"] == {"calls": 0, "tokens": 0, "usd": 0.0, "unpriced": 0} and row["waiting"] == 0
    said = cli("status", "--home", finished.home.path).out
    assert finished.outcome.run in said and "free on the disk" in said
    assert "no runs yet" in cli("status", "--home", tmp_path / "new").out


def test_a_run_is_planned_failed_retried_paused_and_resumed(
    cli: Cli, project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way of a run whose units fail at first, each command said to the next by the one before."""
    home = ["--home", tmp_path / "home"]
    asked = [*project.arguments[1:-1], "0-mlp/3,0-mlp/4", *home]
    planned = cli("plan", *asked, "--minutes", "5")
    assert planned.code == 0 and "2 units, planned by playbook" in planned.out and "undefined" in planned.out
    assert not (tmp_path / "home").exists()

    def broken(unit: Any, by: Any) -> Any:
        raise OSError("the cable is out")

    with monkeypatch.context() as patch:
        patch.setattr(night, "investigate", broken)
        assert cli("run", *asked).code == commands.FAILED
    said = cli("status", *home).out
    assert "failed as 2 OSError" in said and "lamplighter retry" in said
    refused(cli("retry", "--kind", "LLMError", *home), "as 'LLMError'", "2 OSError")
    told = cli("retry", "--kind", "OSError", "--json", *home).json
    assert [one["kind"] for one in told["queued"]] == ["OSError"] * 2
    refused(cli("retry", *home), "no unit has failed")
    assert "2 to do" in cli("plan", *asked).out
    paused = cli("pause", *home)
    assert paused.code == 0 and "is paused" in paused.out
    assert "drained, paused" in cli("status", *home).out
    resumed = cli("resume", "--json", *home).json
    assert resumed["command"] == told["command"]
    again = cli(*shlex.split(told["command"])[1:])
    assert again.code == 0 and "2 units" in again.out
    (row,) = cli("status", "--json", *home).json
    assert (row["status"], row["done"], row["failed"], row["failures"]) == ("done", 2, 0, {})
    assert "0 to do" in cli("plan", *asked).out
    assert cli("verify", *home).code == 0


def test_a_home_is_backed_up_and_verified(cli: Cli, copied: Any, tmp_path: Path) -> None:
    home = ["--home", copied.path]
    assert "all is as it should be" in cli("verify", *home).out
    made = cli("backup", tmp_path / "kept", *home)
    assert made.code == 0 and "left out: sweeps" in made.out and f"lamplighter verify {tmp_path / 'kept'}" in made.out
    assert cli("verify", tmp_path / "kept").code == 0
    refused(cli("backup", tmp_path / "kept", *home), "is there already")
    (tmp_path / "kept" / "work.sqlite").write_bytes(b"")
    said = cli("verify", tmp_path / "kept", "--json")
    assert said.code == 1 and not said.json["ok"]
    assert "checks fail" in cli("verify", tmp_path / "kept").out
    refused(cli("verify", tmp_path / "nowhere"), "neither a home nor a backup")
    shown = cli("status", "--json", "--home", tmp_path / "nowhere").json
    assert shown == [] and not (tmp_path / "nowhere").exists()


def test_models_list_and_doctor(cli: Cli, tmp_path: Path, empty_cache: Path) -> None:
    rows = cli("models", "list", "--json").json
    assert {"smollm2-135m", "bert-tiny-mlm", "minilm", "builtin-corpus"} <= {row["name"] for row in rows}
    assert all(row.keys() == {"name", "role", "licence", "download_bytes", "disk_bytes", "present"} for row in rows)
    assert not any(row["present"] for row in rows) and all(row["download_bytes"] > 0 for row in rows)
    assert "absent" in cli("models", "list").out
    said = cli("doctor", "--json", "--home", tmp_path / "new")
    found = {row["what"]: row for row in said.json}
    assert said.code == 0 and all(row.keys() == {"what", "state", "found", "cost"} for row in said.json)
    assert found["bert-tiny-mlm"]["state"] == "missing" and "substitution" in found["bert-tiny-mlm"]["cost"]
    assert found["Python"]["state"] == "ok" and not (tmp_path / "new").exists()


def test_sql_says_what_it_leaves_out(cli: Cli, copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, so that a pipe still gets its array."""
    home = ["--home", copied.path]
    said = cli("sql", "SELECT * FROM range(9)", "--rows", "3", *home)
    assert len(said.json) == 3 and said.err == "lamplighter: only the first 3 rows are here; --rows allows more.\n"
    assert cli("sql", "SELECT count(*) AS n FROM failures", *home).err == ""
    monkeypatch.setattr(snapshot, "PACE", 1)
    copied.findings.append([Failure(kind="k", message="m", step="s", attempt=1)])
    said = cli("sql", "SELECT count(*) AS n FROM failures", *home)
    assert said.json == [{"n": 0}] and " UTC; more was recorded since.\n" in said.err


def test_sql_prints_an_array_and_nothing_else(cli: Cli, finished: Any) -> None:
    """Into a pipe without --json too, as scripts expect."""
    columns = ["unit", "explanation", "rule", "input_f1", "input_f1_low", "input_f1_high", "floor_f1", "verdict"]
    statement = f"select {', '.join(columns)} from explanations"
    for flags in ([], ["--json"]):
        said = cli("sql", statement, *flags, "--home", finished.home.path)
        assert (said.code, said.err) == (0, "") and len(said.json) == 5
        assert list(said.json[0]) == columns
    assert cli("sql", "SELECT 1 AS x WHERE false", "--home", finished.home.path).json == []


def test_show(cli: Cli, finished: Any, project: Any) -> None:
    said = cli("show", unit(project, "0-mlp/2-"), "--json", "--home", finished.home.path)
    facts = said.json
    assert facts.keys() == {
        "card", "hypotheses", "scores", "evidence", "turns", "verdicts", "reviews", "by_hand", "failures", "imported",
    }  # fmt: skip
    for name in ("rows", "checks", "arguments", "cost", "warnings", "provenance"):
        assert all(isinstance(e[name], list if name in ("rows", "warnings") else dict) for e in facts["evidence"])
    assert facts["card"]["statistics"]["tokens"].keys() == {"explain", "tune", "score"}
    assert isinstance(facts["card"]["rule"], str) and isinstance(facts["hypotheses"][0]["rule"], dict)
    assert facts["by_hand"] == []
    assert facts["card"]["verdict"] == "accepted" and facts["card"]["sign"] == -1 and len(facts["verdicts"]) == 2
    assert {e["sign"] for e in facts["evidence"]} == {-1} and len(facts["scores"]) == 11
    shown = cli("show", unit(project, "0-mlp/2-"), "--home", finished.home.path).out
    wanted = ("War", "accepted", "minimal_example", "never shown", facts["evidence"][0]["id"])
    assert all(word in shown for word in wanted)
    refused(cli("show", unit(project, "0-mlp/2"), "--home", finished.home.path), "nothing is recorded")
    assert "none" in cli("show", unit(project, "0-mlp/4"), "--home", finished.home.path).out


def test_show_lists_each_clause_of_several_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    certain, none = {"value": 0.9, "low": 0.8, "high": 1.0}, {"value": None, "low": None, "high": None}
    names = ("precision", "recall", "f1")
    clauses = [{"clause": "[red]war[/red]", "predicted": 400, "judged": 37, **dict.fromkeys(names, certain)},
               {"clause": "peace", "predicted": 0, "judged": 0, **dict.fromkeys(names, none)}]  # fmt: skip
    score = {"metric": "f1", "judge": None, "value": 0.9, "low": 0.8, "high": 1.0, "n": 40, "floors": {}}
    show._scores([{**score, "details": {"clauses": clauses}}])
    lines = capsys.readouterr().out.partition("each clause by itself")[2].splitlines()
    war, peace = (next(line.split() for line in lines if word in line) for word in ("war", "peace"))
    assert war == ["[red]war[/red]", *["0.90", "[0.80,", "1.00]"] * 3, "37"]
    assert peace == ["peace", *["undefined"] * 3, "0"]
    show._scores([{**score, "details": {"clauses": clauses[:1]}}])
    assert "by itself" not in capsys.readouterr().out, "it is the rule"


def test_show_lists_what_was_tried_by_hand(cli: Cli, copied: Any, project: Any) -> None:
    """Where the hint of `replay` sends people; also for a unit that no run has looked at."""
    home, ids = ["--home", copied.path], {}
    for target in (unit(project, "0-mlp/0"), unit(project, "0-mlp/8")):
        ids[target] = cli("try", target, "the car", "--json", *home).json["id"]
        facts = cli("show", target, "--json", *home).json
        assert [e["id"] for e in facts["by_hand"]] == [ids[target]]
        assert ids[target] not in [e["id"] for e in facts["evidence"]]
        shown = cli("show", target, *home).out
        assert ids[target] in shown.partition("experiments by hand")[2]
        assert ("was not investigated; `lamplighter run" in shown) is target.endswith("8")


def failed_at(when: str, **changed: Any) -> Failure:
    fields = {"kind": "Mishap", "message": when, "step": "start", "attempt": 1, "sign": 1} | changed
    return Failure(created_at=f"{when}T10:00:00.000000", **fields)


def test_show_begins_with_the_newest_outcome(cli: Cli, copied: Any, project: Any) -> None:
    """A failure from before the explanation goes to the end, one of its own investigation too; dates are said."""
    target, home = unit(project, "0-mlp/0"), ["--home", copied.path]
    own = cli("show", target, "--json", *home).json["card"]["investigation"]
    before = failed_at("2020-01-02", unit=target, run="run-before")
    beside = failed_at("2999-01-02", unit=target, run="run-own", investigation=own)
    copied.findings.append([before, beside])
    lines = cli("show", target, *home).out.splitlines()
    assert lines[0].startswith(target) and any(line.startswith("recorded:    2") for line in lines)
    assert lines[-2].startswith("failed beside this: 2999-01-02 10:00 UTC in run run-own at “start”: Mishap")
    assert lines[-1].startswith("failed before: 2020-01-02 10:00 UTC in run run-before")
    copied.findings.append([failed_at("2998-01-02", unit=target, run="run-later")])
    lines = cli("show", target, *home).out.splitlines()
    assert lines[0].startswith("failed 2998-01-02 10:00 UTC in run run-later") and lines[1].startswith(target)


def test_show_says_a_reason_once(capsys: pytest.CaptureFixture[str]) -> None:
    few = {"value": None, "low": None, "high": None, "reason": "too few positives (3)"}
    no_more: dict[str, Any] = {"details": {}, "judge": None}
    lack = {**few, **no_more, "n": 3, "floors": {}}
    had = {**no_more, "metric": "recall", "value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "floors": {"a": 0.1}}
    show._scores([lack | {"metric": "f1"}, had, lack | {"metric": "auprc"}])
    out = capsys.readouterr().out
    assert out.count("too few positives") == 1 and out.endswith("undefined (f1, auprc): too few positives (3)\n")
    assert "[0.40, 0.60]" in out and "a 0.10" in out


def test_try_reads_a_text_token_by_token(cli: Cli, copied: Any, project: Any) -> None:
    target, home = unit(project, "0-mlp/0"), ["--home", copied.path]
    said = cli("try", target, "the car [bold]in[/bold] \x1b[31m", "--json", *home)
    tokens = [row["token"] for row in said.json["rows"]]
    assert "".join(tokens) == "the car [bold]in[/bold] \x1b[31m" and said.json["checks"]["peak"] > 1
    assert tokens[said.json["checks"]["peak_position"] - 1] == " car"
    shown = cli("try", target, "the car \x1b[31m", *home).out
    assert " car" in shown and "█" in shown and "\x1b" not in shown
    assert "silent" in cli("try", target, "the in", *home).out


def test_try_measures_a_reading_by_the_sweep_and_not_by_itself(cli: Cli, copied: Any, project: Any) -> None:
    """A full bar is P; what stays below τ is said not to fire; without a sweep nothing is said to be strong."""
    target, home = unit(project, "0-mlp/0"), ["--home", copied.path]
    known = copied.findings.sql("SELECT peak, threshold FROM unit_cards WHERE unit = ?", [target])[0]
    said = cli("try", target, "the car", "--json", *home).json
    assert said["fires"] is True and {k: said["scale"][k] for k in known} == pytest.approx(known)
    marks = f"on this text (τ {known['threshold']:.3g}; P {known['peak']:.3g} in the sweep of"
    shown = cli("try", target, "the car", *home).out
    assert f"fires {marks}" in shown and shown.count("█") > 10
    weak = {"peak": 100 * known["peak"], "threshold": 50 * known["peak"], "corpus": "c"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sweep, "statistics", lambda *_: SimpleNamespace(**weak))
        shown = cli("try", target, "the car", *home).out
        assert "does not fire on this text (τ" in shown and "█" not in shown
        patch.setattr(Sweep, "statistics", lambda *_: SimpleNamespace(peak=0.0, threshold=0.0))
        assert "never saw the unit active" in cli("try", target, "the car", *home).out
    shutil.rmtree(copied.path / "sweeps")
    said = cli("try", target, "the car", *home)
    command = f"`lamplighter sweep --model {project.model} --sites 0-mlp`"
    lack = f"no sweep in this home says how strong that reading is; {command}"
    assert said.code == 0 and lack in said.out.replace("\n", " ")
    assert "█" not in said.out and "fire" not in said.out
    bare = cli("try", target, "the car", "--json", *home).json
    assert bare["scale"] is None and bare["fires"] is None


def test_tools_are_listed_and_explained(cli: Cli) -> None:
    listed = cli("tool").out
    assert all(name in listed for name in TOOL_NAMES)
    page = cli("tool", "substitute").out
    assert "in_text" in page and "proposals a word from each proposer" in page.replace("\n", " ")
    facts = cli("tool", "substitute", "--json").json
    assert {o["option"] for o in facts["options"]} >= {"text", "words", "proposers", "rings"}
    assert "no tool" in cli("tool", "fly").err


def test_a_name_that_is_nearly_an_embedded_one_is_asked_of_no_hub(cli: Cli) -> None:
    said = cli("try", "smolm2-135m/2-mlp/36", "x")
    assert said.code == 1 and "'smolm2-135m' is no model; did you mean smollm2-135m?" in said.err


def test_a_sweep_of_another_version_is_said_to_be_one(cli: Cli, copied: Any, project: Any) -> None:
    for path in (copied.path / "sweeps").glob("*/sweep.json"):
        facts = json.loads(path.read_text()) | {"format": 1}
        path.write_text(json.dumps(facts))
    said = cli("tool", "top_examples", unit(project, "0-mlp/1"), "--home", copied.path)
    assert said.code == 1 and "was swept by another version in" in said.err


def test_a_tool_prints_the_contract_and_is_recorded_and_replayed(cli: Cli, copied: Any, project: Any) -> None:
    home = ["--home", copied.path]
    said = cli("tool", "minimal_example", unit(project, "0-mlp/1"), "--text", "the in a stop", "--json", *home)
    report = said.json
    extra = {"id", "recalled", "picture", "scale", "fires"}
    assert said.code == 0 and report.keys() == CONTRACT | extra and report["ok"] is True and report["picture"] is None
    assert report["recalled"] is None and report["fires"] == (report["rows"][0]["peak"] >= report["scale"]["threshold"])
    assert report["cost"].keys() == {"forward_rows", "forward_tokens", "backward", "seconds"}
    assert report["rows"][0]["kept_text"].strip() == "stop" and report["rows"][0]["one_minimal"] is True
    asked = cli("tool", "minimal_example", unit(project, "0-mlp/1"), "--args", '{"text": "the in a stop"}', *home)
    assert "stop" in asked.out and "lamplighter replay" in asked.out
    assert "on this text (τ" in asked.out and "recalled: the same was asked before." in asked.out
    other = cli("tool", "minimal_example", unit(project, "0-mlp/1"), "--text", "a stop", *home)
    assert "cost: " in other.out and "forward tokens" in other.out
    (row,) = copied.findings.sql("SELECT * FROM evidence WHERE id = ?", [report["id"]])
    assert json.loads(row["rows"]) == report["rows"] and row["run"] is None
    again = cli("replay", report["id"], "--json", *home)
    assert again.code == 0 and again.json["equal"] is True
    assert "minimal_example" in cli("replay", report["id"], *home).out


def test_it_is_said_where_the_picture_of_an_experiment_is(cli: Cli, project: Any, tmp_path: Path) -> None:
    """On a pair of one's own, in a home where nothing was swept."""
    asked = json.dumps({"text": "in the a car", "corrupt": "in the a stop", "answer": " he", "foil": " in"})
    home = ("--home", tmp_path / "home")
    said = cli("tool", "patch_grid", unit(project, "0-mlp/0"), "--args", asked, *home)
    assert said.code == 0, said
    (line,) = [line for line in said.out.splitlines() if line.startswith("picture: ")]
    place = cli("tool", "patch_grid", unit(project, "0-mlp/0"), "--args", asked, *home, "--json").json["picture"]
    assert Path(place).read_bytes().startswith(b"\x89PNG") and line.removeprefix("picture: ")[:20] == place[:20]


def test_a_replay_that_differs_is_an_error(cli: Cli, copied: Any) -> None:
    with duckdb.connect(str(copied.findings.path)) as con:
        changed = "json_merge_patch(checks, json_object('peak', 0))"
        con.execute(f"UPDATE evidence SET checks = {changed} WHERE tool = 'top_examples'")
    (row,) = copied.findings.sql("SELECT id FROM evidence WHERE tool = 'top_examples' LIMIT 1")
    said = cli("replay", row["id"], "--home", copied.path)
    assert said.code == 1 and "different" in said.out and "checks.peak: 0" in said.out


def test_sweep_makes_one_and_finds_it_again(cli: Cli, copied: Any, project: Any) -> None:
    asked = ["sweep", "--model", project.model, "--corpus", project.corpus, "--sites", "0-mlp", "--home", copied.path]
    said = cli(*asked, "--json")
    (folder,) = (copied.path / "sweeps").iterdir()
    assert said.code == 0 and said.json["digest"] == folder.name and said.json["sites"] == ["0-mlp"]
    shown = cli(*asked, "--tokens", "4000")
    assert "tokens in" in shown.out and len(list((copied.path / "sweeps").iterdir())) == 2


def test_query_finds_by_meaning(cli: Cli, copied: Any, minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMPLIGHTER_CACHE", str(minilm.parent))
    said = cli("query", "automobiles on the road", "--home", copied.path)
    assert said.code == 0 and [row["unit"].rpartition("/")[2] for row in said.json][0] == "0"
    assert said.json[0]["ranks"]["meaning"] == 1 and said.json[0]["why"].startswith("1st by meaning (cosine 0.")
    near = cli("query", "military conflict", "--by", "meaning", "--home", copied.path).json
    assert len(near) == 3 and near[0]["unit"].endswith("/2") and near[0]["similarity"] > near[1]["similarity"]
    assert len(copied.findings.read(Embedding)) == 3, "the sentences were embedded on the way"
    like = cli("query", "--like", f"{near[0]['unit']}-", "--by", "meaning", "--home", copied.path).json
    assert [row["unit"] for row in like] != [] and near[0]["unit"] not in [row["unit"] for row in like]


def test_query_finds_by_word_and_says_that_it_is_all(cli: Cli, copied: Any, project: Any) -> None:
    home = ["--home", copied.path]
    said = cli("query", "cars", *home)
    assert [row["unit"] for row in said.json] == [f"{project.model}/0-mlp/0"] and said.json[0]["words"] == ["cars"]
    assert said.err.startswith("lamplighter: found by word alone, as minilm is not in the cache; `lamplighter models")
    assert cli("query", "cars", "--by", "word", *home).err == ""
    none = cli("query", "aardvark", "--by", "word", *home)
    assert none.json == [] and "has any of these words" in none.err


def test_query_finds_units_that_write_alike(cli: Cli, copied: Any, project: Any) -> None:
    """The very cosines of the down projection's rows."""
    from lamplighter.tools.subject import Subject

    like = f"{project.model}/0-mlp/1"
    said = cli("query", "--like", like, "--by", "direction", "--home", copied.path)
    rows = Subject.load(project.model).write_rows("0-mlp").double()
    this = rows[1] / rows[1].norm()
    assert said.code == 0 and {row["unit"] for row in said.json} == {f"{project.model}/0-mlp/{i}" for i in (0, 2, 3)}
    for row in said.json:
        other = rows[int(row["unit"][-1])] * row["sign"]
        assert row["score"] == pytest.approx(float(this @ other / other.norm()), abs=1e-5)


# The run, from the command line


def test_a_finished_run_is_shown_with_what_to_try_next(cli: Cli, finished: Any, project: Any) -> None:
    said = cli(*project.arguments, "--json", "--home", finished.home.path)
    assert said.code == 0 and said.json.keys() == {
        "run", "status", "repeated", "explanations", "failures", "failed", "left", "llm",
    }  # fmt: skip
    assert said.json["repeated"] is True and len(said.json["explanations"]) == 5
    shown = cli(*project.arguments, "--home", finished.home.path).out
    heads = ("unit", "explanation", "rule", "F1 [95 %]", "floor", "verdict", "planner", "s")
    assert all(head in shown for head in heads) and "accepted" in shown and "abstained" in shown
    assert "--fresh" in shown and shown.rstrip().count("lamplighter ") == 3


@pytest.mark.parametrize(
    ("status", "failed", "code"),
    [("done", [], 0), ("done", ["m/0-mlp/3"], 4), ("budget", [], 3), ("budget", ["m/0-mlp/3"], 3)],
)
def test_exit_codes_of_a_run(
    cli: Cli, finished: Any, monkeypatch: pytest.MonkeyPatch, status: str, failed: list[str], code: int
) -> None:
    """3 beats 4, and units that were rejected, unclear or abstained on are done."""
    run = finished.outcome.run
    left = ["m/0-mlp/4"] if status == "budget" else []
    outcome = Outcome(run, status, [*failed, *left], left, failed)
    monkeypatch.setattr(night, "run_night", lambda *_: outcome)
    said = cli("run", "--home", finished.home.path)
    assert said.code == code
    assert ("left out, the budget was reached: m/0-mlp/4" in said.out) is (status == "budget")


def test_a_unit_that_failed_is_told_and_shown(cli: Cli, copied: Any, project: Any, monkeypatch: Any) -> None:
    def broken(unit: Any, by: Any) -> Any:
        raise ZeroDivisionError("planted [red]\x1b")

    monkeypatch.setattr(night, "investigate", broken)
    named = ["--model", project.model, "--corpus", project.corpus, "--units", "0-mlp/8"]
    asked = ["run", "--planner", "playbook", *named, "--home", copied.path]
    said = cli(*asked)
    assert said.code == 4 and "planted [red]" in said.out and "\x1b" not in said.out
    target = unit(project, "0-mlp/8")
    assert "ZeroDivisionError: planted" in cli("show", target, "--home", copied.path).out
    assert cli(*asked, "--json").json["failed"] == [target]


def test_no_minutes_are_a_budget_that_is_reached(cli: Cli, copied: Any, project: Any) -> None:
    named = ["--model", project.model, "--corpus", project.corpus, "--units", "0-mlp/4"]
    asked = ["run", "--planner", "playbook", *named, "--home", copied.path]
    said = cli(*asked, "--minutes", "0", "--json")
    assert said.code == 3 and said.json["left"] == [unit(project, "0-mlp/4")] and said.json["explanations"] == []
    said = cli(*asked, "--json")
    assert said.code == 0 and [row["verdict"] for row in said.json["explanations"]] == ["abstained"]


@pytest.mark.parametrize(
    ("limit", "words"),
    [(["--minutes", "0"], "0 minutes are spent"), (["--llm-tokens", "0"], "0 tokens of language model are spent"),
     (["--usd", "0"], "0 dollars are spent")],
)  # fmt: skip
def test_a_budget_that_ends_before_the_first_question_is_3(
    cli: Cli, copied: Any, project: Any, limit: list[str], words: str
) -> None:
    with ScriptedEndpoint() as server:
        named = ["--model", project.model, "--corpus", project.corpus, "--units", "0-mlp/4"]
        asked = ["run", "--planner", "llm", "--endpoint", server.url, *named, *limit, "--json", "--home", copied.path]
        said = cli(*asked)
        assert server.requests == []
    assert said.code == 3 and said.err.count("\n") == 1 and f"raise {limit[0]}." in said.err
    assert said.json["error"].endswith(f"{words} before the first unit was begun")
    assert said.json["hint"] == f"raise {limit[0]}."


def test_an_endpoint_for_nothing_is_refused(cli: Cli, project: Any, tmp_path: Path) -> None:
    asked = ["run", "--model", project.model, "--corpus", project.corpus, "--home", tmp_path / "home"]
    url = "http://127.0.0.1:1/v1"
    refused(cli(*asked, "--planner", "playbook", "--endpoint", url), "asks no language model", "leave --endpoint out")
    for planner in ("auto", "llm", "playbook"):
        refused(cli(*asked, "--planner", planner, "--endpoint", ""), "--endpoint is empty", "or leave it out")
    refused(cli(*asked, "--planner", "playbook", "--judge", " "), "--judge is empty", "or leave it out")


def test_a_query_that_finds_nothing_says_why(
    cli: Cli, copied: Any, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On stderr, so that a pipe still gets its array."""
    copied.findings.append(
        Embedding(hypothesis=h.id, model=EMBEDDER, vector=[1.0, 0.0]) for h in copied.findings.read(Hypothesis)
    )
    monkeypatch.setattr(find, "load_embedder", lambda: lambda texts: [[1.0, 0.0] for _ in texts])
    monkeypatch.setattr(find, "embeds", lambda: True)
    home = ["--home", copied.path]
    assert len(cli("query", "zebras", *home).json) == 3
    for flags, words in (
        (["--model", "nope"], f"no explanation is of the model 'nope'; there are some of {project.model}."),
        (["--site", "7-mlp"], "no explanation is of the site '7-mlp'; there are some of 0-mlp."),
        (["--min-score", "2"], "no explanation passes the filters (min score 2.0)"),
    ):
        said = cli("query", "cars", *flags, *home)
        assert said.code == 0 and said.json == [] and words in said.err and said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["run"], "(a sweep that was not through is not), and the same command goes on from there."),
        (["sweep"], "nothing is kept of a sweep that was not through, and the same command begins it anew."),
        (["try", "m/0-mlp/1", "x"], "the same command makes it anew."),
        (["tool", "lens", "m/0-mlp/1"], "the same command runs it anew."),
    ],
)
def test_what_a_stop_leaves_is_said_by_command(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, command: list[str], words: str
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Home, "resolve", interrupted)
    said = cli(*command)
    assert said.code == 130 and said.err.startswith("stopped; ") and said.err.endswith(f"{words}\n")


def test_ctrl_c_ends_any_command_with_130(cli: Cli, finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal was not heeded")

    monkeypatch.setattr(Snapshots, "sql", interrupted)
    said = cli("sql", "SELECT 1", "--home", finished.home.path)
    assert said.code == 130 and said.out == "" and said.err.startswith("stopped; ") and said.err.count("\n") == 1


def test_a_fresh_process_says_one_line_and_no_more(project: Any, finished: Any, tmp_path: Path) -> None:
    """With a model loaded: no loading bars, no notices of libraries, and from another folder than the project's."""
    asked = ["tool", "activate", unit(project, "0-mlp/9"), "--text", "a", "--json", "--home", str(finished.home.path)]
    command = [sys.executable, "-m", "lamplighter", *asked]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1 and json.loads(done.stdout)["ok"] is False
    assert len(done.stderr.splitlines()) == 1, done.stderr
    piped = subprocess.run(
        f"{sys.executable} -m lamplighter models list | true", shell=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert piped.stderr == ""


# SAEs


@pytest.fixture
def sae(tmp_path: Path) -> Path:
    """A folder with an SAE of the project's width."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path / "sae"
    folder.mkdir()
    torch.manual_seed(0)
    tensors = {"W_enc": torch.randn(24, 32), "W_dec": torch.randn(32, 24)}
    tensors |= {"b_enc": torch.zeros(32), "b_dec": torch.zeros(24)}
    config = {"architecture": "standard", "d_in": 24, "d_sae": 32, "hook_name": "blocks.0.hook_resid_post"}
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def test_features_of_an_sae_that_was_added_are_units(cli: Cli, project: Any, sae: Path, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    shipped = cli("saes", "list", *home, "--json").json
    assert [row["site"] for row in shipped] == ["8-resid:smollm2-l8-topk"]
    added = cli("saes", "add", "mine", sae, *home, "--json")
    known = {"name": "mine", "site": "0-resid:mine", "architecture": "standard", "features": 32, "model": "unknown"}
    assert added.code == 0 and added.json == [known]
    assert cli("saes", "list", *home, "--json").json == [known, *shipped]
    read = cli("tool", "activate", unit(project, "0-resid:mine/3"), "--text", "a car", *home, "--json").json
    assert read["ok"] and read["unit"].endswith("0-resid:mine/3") and len(read["rows"]) >= 2
    refused(cli("saes", "add", "mine", sae, *home), "is there already")
    refused(cli("tool", "activate", unit(project, "1-resid:mine/3"), "--text", "a", *home), "mine is at 0-resid:mine")
    refused(cli("tool", "activate", unit(project, "0-resid:other/3"), "--text", "a", *home), "no SAE is called 'other'")


def test_an_sae_is_judged_on_the_score_side(cli: Cli, project: Any, sae: Path, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    cli("saes", "add", "mine", sae, *home)
    said = cli("saes", "eval", "0-resid:mine", "--model", project.model, "--corpus", project.corpus, *home, "--json")
    assert said.code == 0, said
    metrics = {row["metric"]: row["value"] for row in said.json["rows"]}
    assert metrics["fve"] < 0 < metrics["l0"] and said.json["features"] == 32      # random directions explain nothing
    assert said.json["warnings"] == []


def test_an_sae_that_names_another_model_is_taken_with_a_note(
    cli: Cli, project: Any, sae: Path, tmp_path: Path
) -> None:
    home, text = ("--home", tmp_path / "home"), ("--text", "a car")
    config = json.loads((sae / "cfg.json").read_text())
    for name, trained_on in (("same", f"org/{Path(project.model).name.upper()}"), ("other", "org/pythia-70m")):
        (sae / "cfg.json").write_text(json.dumps(config | {"metadata": {"model_name": trained_on}}))
        assert cli("saes", "add", name, sae, *home, "--json").json[0]["model"] == trained_on
    read = cli("tool", "activate", unit(project, "0-resid:same/3"), *text, *home, "--json").json
    assert read["ok"] and read["warnings"] == []
    asked = ("tool", "activate", unit(project, "0-resid:other/3"), *text, *home)
    assert "other says that it was trained on org/pythia-70m, and this is" in cli(*asked, "--json").json["warnings"][0]
    assert "note: other says that it was trained on org/pythia-70m" in " ".join(cli(*asked).out.split())
    judged = ("saes", "eval", "0-resid:other", "--model", project.model, "--corpus", project.corpus, *home)
    assert "note: other says that it was trained on org/pythia-70m" in " ".join(cli(*judged).out.split())
