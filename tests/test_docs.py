"""What the README says is so: commands, options, targets, sizes, files, and its Python example."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text("utf-8")
FOLDERS = ("agent", "experiments", "prompts", "store", "tools")


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, content) of each fenced block."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def code(text: str) -> list[str]:
    """Lines of fenced and indented code, and inline code, each up to the two blanks before its remark."""
    fenced = [line for _, content in blocks(text) for line in content.splitlines()]
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    (.+)$", rest, re.MULTILINE)
    inline = re.findall(r"`([^`\n]+)`", rest)
    return [line.split("  ")[0].strip() for line in (*fenced, *indented, *inline) if line.strip()]


def commands(text: str) -> list[list[str]]:
    """The words of every `lamplighter …` in `text`, each command once."""
    lines = dict.fromkeys(line.removeprefix(".venv/bin/") for line in code(text))
    return [shlex.split(line)[1:] for line in lines if line.startswith("lamplighter ")]


def cli() -> Any:
    import typer

    from lamplighter.__main__ import app

    return typer.main.get_command(app)


def found(command: Any, words: list[str]) -> tuple[Any, list[str]]:
    """The command that `words` name, and the names on the way to it."""
    path: list[str] = []
    while path != words and hasattr(command, "commands"):
        name = words[len(path)]
        assert name in command.commands, f"lamplighter {' '.join([*path, name])} is documented and does not exist"
        command = command.commands[name]
        path.append(name)
    return command, path


@pytest.mark.parametrize("words", commands(README + CONTRIBUTING), ids=" ".join)
def test_documented_commands_and_options_exist(words: list[str]) -> None:
    from typer.testing import CliRunner

    from lamplighter.__main__ import app

    command, path = found(cli(), words)
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
    done = CliRunner().invoke(app, [*path, "--help"])
    assert done.exit_code == 0, done.output


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, below in command.commands.items():
        if not below.hidden:
            yield from leaves(below, (*path, name)) if hasattr(below, "commands") else [(*path, name)]


def test_every_command_is_documented() -> None:
    documented = {tuple(words[: len(path)]) for words in commands(README) for path in leaves(cli())}
    assert [path for path in leaves(cli()) if path not in documented] == []


def test_a_command_that_does_not_exist_is_seen() -> None:
    class Group:
        commands = {"models": object()}

    with pytest.raises(AssertionError, match="lamplighter modles is documented"):
        found(Group(), ["modles", "list"])


def test_make_targets_and_variables_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    calls = [line.split()[1:] for line in code(README + CONTRIBUTING) if line.startswith("make ")]
    assert {call[0] for call in calls} == targets == {"setup", "demo", "test", "check"}
    words = [word for line in code(README) for word in line.split()]
    variables = {word.partition("=")[0] for word in words if re.match(r"[A-Z_]+=", word)}
    assert variables
    assert all(re.search(rf"\b{name}\b", makefile) for name in variables)


def megabytes(cell: str) -> float:
    number, unit = cell.split()
    return float(number) * {"MB": 1, "GB": 1000}[unit]


def test_download_sizes_are_those_of_the_pins() -> None:
    table = tomllib.loads((ROOT / "tools" / "models.toml").read_text("utf-8"))
    said = dict(re.findall(r"^\| `([\w.-]+)`[^|]*\| ([\d.]+ [MG]B) \|", README, re.MULTILINE))
    assert said.keys() == {name for name, row in table.items() if row["role"] != "planner"}
    for name, size in said.items():
        pinned = sum(part["bytes"] for part in table[name]["parts"])
        assert megabytes(size) == pytest.approx(pinned / 1e6, abs=0.5), name


def the_map() -> set[str]:
    """Every path in the README's map."""
    section = README.partition("## The map")[2]
    _, content = next(blocks(section))
    paths, folder = set(), ""
    for line in content.splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else name
        paths.add(folder + name if line.startswith(" ") else name)
    return paths


def test_the_map_shows_every_file_and_no_other() -> None:
    files = {p.relative_to(ROOT).as_posix() for name in FOLDERS for p in (ROOT / name).rglob("*") if p.is_file()}
    named = (name if name.count("/") == 1 else "/".join(name.split("/")[:2]) + "/" for name in files)   # data by folder
    shown = {name for name in named if "__pycache__" not in name and not name.endswith("__init__.py")}
    assert the_map() == shown | {f"{name}/" for name in FOLDERS}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text("utf-8")):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            assert (ROOT / path).exists(), target
            headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text("utf-8"), re.MULTILINE) if anchor else []
            assert not anchor or anchor in [heading.lower().replace(" ", "-") for heading in headings], target


def test_files_named_in_the_prose_exist() -> None:
    named = set(re.findall(r"`((?:tools|agent|store|tests|\.ci)/[\w./-]+)`", README + CONTRIBUTING))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_tool_is_documented() -> None:
    from lamplighter.tools.toolbox import TOOL_NAMES

    section = README.partition("## How a unit is explained")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(TOOL_NAMES)


def test_the_changelog_has_a_place_for_what_comes_next() -> None:
    headings = re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert set(re.findall(r"^### (.+)$", CHANGELOG, re.MULTILINE)) <= {
        "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"
    }  # fmt: skip


def test_the_python_example_runs(smollm2: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = [content for language, content in blocks(README) if language == "python"]
    exec(compile(example, "README.md", "exec"), {})
    assert "th" in capsys.readouterr().out
