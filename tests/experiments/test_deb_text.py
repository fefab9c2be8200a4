"""deb_text: what of a package becomes text, and that every machine makes the same of it."""

import gzip
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from lamplighter.experiments import deb_text as module
from lamplighter.experiments.deb_text import is_text, main, paragraphs
from lamplighter.store.records import Refused

LONG = "The lamps along the river are lit one by one, by people who know each of them well."
PAGE = f"""<html><head><title>Not this</title><style>p {{ color: red }}</style></head>
<body><nav>Home Next Previous menu and what else there is of it</nav>
<h1>Short</h1><p>{LONG} It&rsquo;s <em>late</em>.</p>
<pre>int main(void) {{ return 0; }} and a lot of other code here</pre>
<p>2 + 2 = 4; 3 * 3 = 9; 0x1f | 0x2e == 63 (see 4.2.1, 4.2.2, 4.2.3 and 5.1)</p><li>{LONG[::-1]}</li></body></html>"""


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("./usr/share/doc/lamps/guide.html", True), ("./usr/share/doc/lamps/guide.txt.gz", True),
        ("./usr/share/perl/5.36.0/pod/perlfaq1.pod", True), ("./usr/share/dictd/wn.dict.dz", True),
        ("./usr/share/games/fortunes/cookie", True), ("./usr/share/help/C/lamps/index.page", True),
        ("./usr/share/help/fr/lamps/index.page", False), ("./usr/share/doc/lamps/guide.de.html", False),
        ("./usr/share/doc/lamps/guide.en.html", True), ("./usr/share/doc/lamps/changelog.txt.gz", False),
        ("./usr/share/doc/lamps/copyright", False), ("./usr/share/doc/lamps/lamp.png", False),
        ("./usr/share/games/fortunes/cookie.dat", False),
    ],
)  # fmt: skip
def test_documentation_in_english_is_told_by_its_name(name: str, taken: bool) -> None:
    assert is_text(name) is taken


def test_of_a_page_running_text_is_kept() -> None:
    assert list(paragraphs("a.html", PAGE.encode())) == [f"{LONG} It’s late.", LONG[::-1]]


def test_other_forms_are_cut_at_their_own_borders() -> None:
    two = [LONG, LONG.upper()]
    assert list(paragraphs("a.txt", "\n \n".join(two).encode())) == two
    assert list(paragraphs("/fortunes/cookie", "\n%\n".join(two).encode())) == two
    assert list(paragraphs("a.dict.dz", gzip.compress(f"{LONG}\n{LONG.upper()}\n   more of it".encode()))) == [
        LONG, f"{LONG.upper()} more of it",
    ]  # fmt: skip
    assert list(paragraphs("a.pod", f"B<{LONG[:40]}>{LONG[40:]}".encode())) == [LONG]
    assert list(paragraphs("a.txt", LONG.encode() + b"\xff")) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    root = tmp_path / "lamps"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: lamps\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: lamps\n"
    )
    texts = root / "usr/share/doc/lamps"
    texts.mkdir(parents=True)
    (texts / "guide.html").write_text(PAGE)
    (texts / "again.txt").write_text(f"{LONG}\n\n{LONG[::-1]}")
    folder = tmp_path / "packages"
    folder.mkdir()
    built = ["dpkg-deb", "--root-owner-group", "--build", str(root), str(folder / "lamps_1_all.deb")]
    subprocess.run(built, check=True, capture_output=True)
    return folder


def test_a_package_becomes_documents_without_what_it_says_twice(folder: Path, tmp_path: Path) -> None:
    main(folder, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    said = [paragraph for row in rows for paragraph in row["text"].split("\n\n")]
    assert sorted(said) == sorted([LONG, LONG[::-1], f"{LONG} It’s late."])
    (note,) = json.loads((tmp_path / "out.packages.json").read_text("utf-8"))
    assert note["package"] == "lamps_1_all" and note["characters"] == sum(len(row["text"]) for row in rows)
    first = (tmp_path / "out.jsonl").read_bytes()
    main(folder, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == first


def test_no_package_is_most_of_the_corpus(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 10)
    assert len(list(module.documents(folder / "lamps_1_all.deb"))) == 1


def test_a_folder_without_packages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"holds no \.deb files"):
        main(tmp_path, tmp_path / "out.jsonl")
