"""The rules of the house: who may import whom, what the wheel holds, what a quick command may load, how files read."""

import ast
import fnmatch
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("agent", "experiments", "prompts", "store", "tools")
SOURCES = sorted([*ROOT.glob("*.py"), *(path for name in FOLDERS for path in (ROOT / name).glob("*.py"))])
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# What a file of a folder may import from this package, beside the leaves and the lazy root.
ARROWS = {
    "experiments": ("experiments", "agent", "tools", "store", "prompts", "testing"),   # a scripted server for one bench
    "agent": ("agent", "tools", "store", "prompts"),
    "tools": ("tools", "store.records"),
    "store": ("store",),
    "prompts": ("prompts",),
}
LEAVES = ("tools.measures", "tools.stats")   # anyone may import these; they import only each other
HEAVY = (
    "fastapi", "jinja2", "langgraph", "mcp", "scipy", "sentence_transformers", "sklearn", "torch", "transformers",
    "uvicorn",
)  # fmt: skip
STATISTICAL = ("review agreement", "review calibration")     # they compute intervals


def dotted(path: Path) -> str:
    """`tools.sweep` for tools/sweep.py, `tools` for tools/__init__.py, '' for the root's __init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def imports(source: str, folder: str) -> Iterator[tuple[int, str]]:
    """(level, dotted name) of every import in `source`, a file of `folder` ('' = the root).

    Relative ones (level ≥ 1) are named from the package's root, down to the module where the name is one.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folder if node.level == 1 else ""
            base = ".".join(filter(None, (above, node.module))) if node.level else str(node.module)
            for alias in node.names:
                name = f"{base}.{alias.name}".lstrip(".")
                yield node.level, name if node.level and is_module(name) else base


def fault(module: str, level: int, target: str) -> str | None:
    """Why `module` may not import `target` this way, or None."""
    folder = module.partition(".")[0] if module.partition(".")[0] in FOLDERS else ""
    if level == 0:
        ours = target.partition(".")[0] in (*FOLDERS, "lamplighter")
        return f"{module} imports {target}, but not relatively" if ours else None
    if level > (2 if folder else 1):
        return f"{module} imports from outside the package"
    closed = module in LEAVES or module == "store.records"
    allowed = LEAVES if closed else ("", *LEAVES, *ARROWS.get(folder, FOLDERS))
    if folder and not any(target == name or (name and target.startswith(f"{name}.")) for name in allowed):
        return f"{module} imports {target or 'the root'}, against the arrows"
    return None


def faults(module: str, source: str) -> list[str]:
    folder = module.partition(".")[0]
    found = [fault(module, *one) for one in imports(source, folder if folder in FOLDERS else "")]
    return [one for one in found if one]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: dotted(path) or "root")
def test_imports_run_one_way(path: Path) -> None:
    assert faults(dotted(path), path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("store.new", "from ..tools.units import UnitId"),
        ("store.new", "from .. import tools"),
        ("store.new", "def f():\n    from ..agent.cli import app"),
        ("tools.new", "from ..store.findings import Findings"),
        ("tools.new", "from ..store import records, work"),
        ("tools.new", "from ..agent import cli"),
        ("agent.new", "from ..experiments import planted"),
        ("prompts.new", "from ..store.records import Refused"),
        ("tools.measures", "from .units import UnitId"),
        ("store.records", "from .findings import Findings"),
        ("tools.new", "from lamplighter.tools.units import UnitId"),
        ("tools.new", "import tools.units"),
        ("tools.new", "from tools import units"),
        ("tools.new", "from ...elsewhere import thing"),
    ],
)
def test_a_wrong_import_is_seen(module: str, line: str) -> None:
    assert len(faults(module, line)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("experiments.new", "from ..agent import cli"),
        ("agent.new", "from ..store.findings import Findings"),
        ("tools.new", "from ..store.records import Refused"),
        ("tools.new", "from . import measures"),
        ("store.new", "from ..tools.measures import VERSION"),
        ("store.new", "from .. import __version__"),
        ("store.new", "from .records import Record"),
        ("store.new", "import json.tool"),
        ("__main__", "from .agent.cli import app"),
    ],
)
def test_a_right_import_is_let_through(module: str, line: str) -> None:
    assert faults(module, line) == []


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_import_the_package_by_its_name(path: Path) -> None:
    names = [name for _, name in imports(path.read_text("utf-8"), "")]
    assert [name for name in names if name.partition(".")[0] in FOLDERS] == []
    assert not (path.parent / "__init__.py").exists(), "tests are no package"


# The wheel


def settings() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]


def inside(folder: str) -> list[Path]:
    """The files below a package folder that people wrote."""
    return [p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]


def test_every_folder_is_in_the_wheel_and_flat() -> None:
    assert sorted(settings()["packages"]) == ["lamplighter", *(f"lamplighter.{name}" for name in FOLDERS)]
    for folder in FOLDERS:
        assert (ROOT / folder / "__init__.py").is_file()
        assert [p for p in inside(folder) if p.suffix == ".py" and p.parent != ROOT / folder] == [], "folders stay flat"


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_data_file_is_in_the_wheel(folder: str) -> None:
    patterns = settings()["package-data"].get(f"lamplighter.{folder}", [])
    names = [p.relative_to(ROOT / folder).as_posix() for p in inside(folder) if p.suffix != ".py"]
    assert [n for n in names if not any(fnmatch.fnmatch(n, pattern) for pattern in patterns)] == []


# Quick commands stay quick

PROBE = """
import json, pathlib, sys
from lamplighter.__main__ import main
note = pathlib.Path(sys.argv.pop(1))
try:
    sys.exit(main())
finally:
    note.write_text(json.dumps(sorted(sys.modules)))
"""


def loaded(home: Path, *arguments: str) -> tuple[int, set[str], str]:
    """Exit code, the top-level modules in memory at the end, and stdout of one command in its own process."""
    note = home / "modules.json"
    note.unlink(missing_ok=True)
    command = [sys.executable, "-P", "-c", PROBE, str(note), *arguments]
    places = {"LAMPLIGHTER_HOME": str(home), "LAMPLIGHTER_CACHE": str(home / "cache")}
    done = subprocess.run(
        command, cwd=home, env=os.environ | places, capture_output=True, text=True, timeout=120, check=False
    )
    assert note.exists(), done.stderr
    return done.returncode, {name.partition(".")[0] for name in json.loads(note.read_text())}, done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which one run is on record."""
    from lamplighter.store.findings import Findings
    from lamplighter.store.records import Run

    home = tmp_path_factory.mktemp("home")
    Findings(home / "findings.duckdb").append([Run(key="k", asked={}, status="done", units=[])])
    return home


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("--help", 0),
        ("run --help", 0),
        ("sql --help", 0),
        ("serve --help", 0),
        ("serve --host 0.0.0.0", 1),
        ("show --help", 0),
        ("sql 'select status from runs'", 0),
        ("query --help", 0),
        ("query x --by word", 0),
        ("mcp --help", 0),
        ("mcp --minutes 1", 1),
        ("status", 0),
        ("plan --help", 0),
        ("verify", 0),
        ("pause", 1),
        ("resume", 1),
        ("retry", 1),
        ("backup", 0),
        ("show smollm2-135m/5-mlp/511", 1),
        ("review list", 0),
        ("review next --reviewer ann", 0),
        ("review submit accept --reviewer ann", 1),
        ("review undo --reviewer ann", 1),
        ("review agreement", 0),
        ("review calibration", 0),
        ("review score --help", 0),
        ("models list", 0),
    ],
)
def test_quick_commands_load_nothing_heavy(home: Path, line: str, code: int) -> None:
    done, modules, out = loaded(home, *shlex.split(line))
    assert done == code, out
    assert "typer" in modules, "the probe sees what a command loads"
    statistics = {"scipy", "sklearn"} if line in STATISTICAL else set()
    assert modules.intersection(HEAVY) == statistics
    if "select" in line:
        assert json.loads(out) == [{"status": "done"}]


def test_importing_the_package_loads_next_to_nothing(home: Path) -> None:
    probe = "import sys, lamplighter; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", probe], cwd=home, capture_output=True, text=True, check=True)
    modules = {name.partition(".")[0] for name in done.stdout.split()}
    assert "lamplighter" in modules
    assert modules.intersection((*HEAVY, "numpy", "duckdb", "typer")) == set()


# How files read


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: dotted(path) or "root")
def test_everything_public_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    public = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
    assert [getattr(n, "name", "the module") for n in (tree, *public) if not ast.get_docstring(n)] == []


WRITTEN = (".md", ".py", ".sql", ".toml", ".txt", ".yaml", ".in")
UNFINISHED = re.compile(r"\b(TO[D]O|FIX[M]E|X{3}|HA[C]K|NotImplemented[E]rror|lorem [i]psum)\b|for [n]ow\b")
MACHINE = re.compile(r"(?<![\w.~/$}-])/(root|home|work|Users|tmp|mnt|opt|var/folders)(/|\b)")
WORKSHOP = re.compile(r"\bissues? #?\d|\b(this|next|previous|later|earlier) ([s]ession|[i]ssue)\b", re.IGNORECASE)


def texts() -> list[Path]:
    """Every file that people wrote; corpus texts (.jsonl) are data and may say what they like."""
    loose = [p for p in ROOT.iterdir() if p.is_file() and (p.suffix in WRITTEN or p.name == "Makefile")]
    below = [p for name in (*FOLDERS, "tests") for p in inside(name) if p.suffix in WRITTEN]
    return sorted([*loose, *below, ROOT / ".ci" / "run", ROOT / ".pre-commit-config.yaml"])


def lines(pattern: re.Pattern[str]) -> list[str]:
    found = []
    for path in texts():
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    return found


def test_nothing_is_left_for_later() -> None:
    assert lines(UNFINISHED) == []


def test_no_path_of_one_machine() -> None:
    assert lines(MACHINE) == []


def test_files_speak_of_the_project_alone() -> None:
    assert lines(WORKSHOP) == []


@pytest.mark.parametrize(
    ("pattern", "bad", "good"),
    [
        (UNFINISHED, "# TO" + "DO: later", "the to-do list of a letter"),
        (UNFINISHED, "raise NotImplemented" + "Error", "raise Refused"),
        (MACHINE, "open('/ro" + "ot/x')", "https://example.org/root/x"),
        (MACHINE, "cd /wo" + "rk", "tools/work.py and ~/work"),
        (WORKSHOP, "see issue" + " #3", "an issue of the journal"),
        (WORKSHOP, "left to the next ses" + "sion", 'scope="session"'),
    ],
)
def test_the_patterns_see_what_they_are_for(pattern: re.Pattern[str], bad: str, good: str) -> None:
    assert pattern.search(bad)
    assert not pattern.search(good)


def swallowed(source: str) -> list[int]:
    """Lines of handlers that catch everything, or that do nothing at all about what they catch."""
    wide = ("Exception", "BaseException")
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            idle = all(isinstance(step, ast.Pass | ast.Continue) for step in node.body)
            name = node.type.id if isinstance(node.type, ast.Name) else ""
            if node.type is None or (idle and name in wide) or all(isinstance(s, ast.Pass) for s in node.body):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: dotted(path) or "root")
def test_no_error_is_swallowed(path: Path) -> None:
    assert swallowed(path.read_text("utf-8")) == []


@pytest.mark.parametrize("handler", ["except:\n    x = 1", "except OSError:\n    pass", "except Exception:\n    pass"])
def test_a_swallowed_error_is_seen(handler: str) -> None:
    assert swallowed(f"try:\n    f()\n{handler}\n") == [3]
