"""A tiny project: a model with planted neurons, three hundred short texts, and one finished run over them."""

import copy
import json
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

# What each neuron of 0-mlp fires on; 2 fires negatively, 3 too rarely to be explained, 4 never; the rest are common.
FIRES = {
    0: (" car",), 1: (" stop", " World"), 2: (" War",), 3: (" said",), 4: (),
    5: (" the",), 6: (" in",), 7: (" re",), 8: (" st",),
}  # fmt: skip
WORDS = (
    "the", "in", "an", "as", "at", "it", "is", "of", "he", "al", "or", "en", "do", "re", "st",
    "ar", "il", "ap", "ef", "lu", "gi", "ai", "et", "op", "ld", "ce", "ry", "de", "18", "42",
)  # fmt: skip
UNITS = "0-mlp/0,0-mlp/1,0-mlp/2-,0-mlp/3,0-mlp/4"


def planted_model(llama: Any) -> Any:
    """A random llama in float32 with nine neurons a layer; those of layer 0 fire by FIRES.

    Dimension k of the stream is neuron k's own: only its tokens' embeddings reach it, and attention 0 leaves it be.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(llama.config)
    config.intermediate_size = len(FIRES)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).requires_grad_(False)
    body, block = model.model, model.model.layers[0]
    own = list(FIRES)
    block.self_attn.o_proj.weight[own] = 0
    body.embed_tokens.weight[:, own] = 0
    for k, fires in FIRES.items():
        reads = torch.zeros(24)
        reads[k] = 1.5
        block.mlp.gate_proj.weight[k] = reads if fires else 0
        block.mlp.up_proj.weight[k] = -reads if k == 2 else reads
        for text in fires:
            (token,) = llama.tokenizer(text, add_special_tokens=False)["input_ids"]
            body.embed_tokens.weight[token, k] = 8
    return model


def documents(seed: int = 0, count: int = 300) -> list[str]:
    """Texts of 15 to 25 words, no two alike; each planted word is in a third of them, " said" in every fiftieth."""
    draw = random.Random(seed)
    texts = []
    for number in range(count):
        words = draw.choices(WORDS, k=draw.randint(15, 25))
        for planted in ("car", "stop", "World", "War"):
            if draw.random() < 0.3:
                words.insert(draw.randint(1, len(words)), planted)
        if number % 50 == 0:
            words.insert(3, "said")
        texts.append(" ".join(words))
    return texts


def write_corpus(folder: Path, texts: list[str]) -> Path:
    """The first twenty as .txt files, the rest as lines of one .jsonl file."""
    folder.mkdir(parents=True)
    for number, text in enumerate(texts[:20]):
        (folder / f"{number:02}.txt").write_text(text, "utf-8")
    lines = [json.dumps({"text": text, "name": f"row {i}"}) for i, text in enumerate(texts[20:])]
    (folder / "rows.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


@dataclass
class Told:
    """A Progress that notes what it is told, and may do something at a step."""

    steps: list[tuple[str, str]] = field(default_factory=list)
    swept: list[tuple[str, int, int]] = field(default_factory=list)
    picks: list[tuple[str, str]] = field(default_factory=list)
    begun: list[tuple[int, int]] = field(default_factory=list)
    ends: list[tuple[str, str, int, int]] = field(default_factory=list)
    paces: list[str] = field(default_factory=list)
    at_step: Any = None

    def sweeping(self, what: str, done: int, total: int) -> None:
        self.swept.append((what, done, total))

    def picked(self, unit: str, why: str) -> None:
        self.picks.append((unit, why))

    def begins(self, done: int, total: int) -> None:
        self.begun.append((done, total))

    def step(self, unit: str, what: str) -> None:
        self.steps.append((unit, what))
        if self.at_step is not None:
            self.at_step(unit, what)

    def pace(self, line: str) -> None:
        self.paces.append(line)

    def ended(self, unit: str, how: str, done: int, total: int) -> None:
        self.ends.append((unit, how, done, total))


@dataclass(frozen=True)
class Project:
    """A saved model, a corpus, and how to ask for a run."""

    model: str
    corpus: str

    def request(self, **changes: Any) -> Any:
        from lamplighter.agent.request import Request

        asked = {"model": self.model, "corpus": self.corpus, "sites": (), "units": UNITS} | changes
        return Request(**asked)

    def run(self, home: Any, told: Told | None = None, **changes: Any) -> Any:
        from lamplighter.agent.night import run_night

        return run_night(home, self.request(**changes), told or Told())

    @property
    def arguments(self) -> list[str]:
        """The command line of the same request."""
        return ["run", "--planner", "playbook", "--model", self.model, "--corpus", self.corpus, "--units", UNITS]


@pytest.fixture(scope="session")
def empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("no-weights")


@pytest.fixture(autouse=True)
def no_weights(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is pulled, for the tests of this folder and the processes that they start."""
    monkeypatch.setenv("LAMPLIGHTER_CACHE", str(empty_cache))
    monkeypatch.delenv("LAMPLIGHTER_HOME", raising=False)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, llama: Any) -> Project:
    root = tmp_path_factory.mktemp("project")
    model = planted_model(llama)
    model.save_pretrained(root / "model")
    llama.tokenizer.save_pretrained(root / "model")
    corpus = write_corpus(root / "corpus", documents())
    return Project(str(root / "model"), str(corpus))


@pytest.fixture(scope="session")
def other_texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A corpus of the same kind, in which no text of the project's stands."""
    return str(write_corpus(tmp_path_factory.mktemp("other") / "corpus", documents(seed=1)))


@dataclass(frozen=True)
class Finished:
    home: Any
    outcome: Any
    told: Told


@pytest.fixture(scope="session")
def finished(project: Project, empty_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The project's run, brought to its end once. Read it, never write to its home."""
    from lamplighter.agent.config import Home

    home, told = Home(tmp_path_factory.mktemp("home")), Told()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAMPLIGHTER_CACHE", str(empty_cache))
        return Finished(home, project.run(home, told), told)


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Any:
    """The finished home, to be written to."""
    from lamplighter.agent.config import Home

    shutil.copytree(finished.home.path, tmp_path / "copied")
    return Home(tmp_path / "copied")


@pytest.fixture
def swept(finished: Finished, tmp_path: Path) -> Any:
    """A home with the finished run's sweep and nothing else."""
    from lamplighter.agent.config import Home

    home = Home(tmp_path / "swept")
    shutil.copytree(finished.home.path / "sweeps", home.path / "sweeps")
    return home


@pytest.fixture
def told() -> Told:
    return Told()
