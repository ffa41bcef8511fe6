"""Every theorem of proofs/README.md has its proof, its test with a negative control, and statements that exist.

Needs no Coq: `proofs/check.sh` compiles the proofs, this keeps the table honest.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import riemann_ng

ROOT = Path(__file__).parent.parent
PROOFS = ROOT / "proofs"
SOURCES = sorted((PROOFS / "coq").glob("*.v"))
FORBIDDEN = r"\b(Admitted|admit|Abort|Axiom|Axioms|Parameter|Parameters|Conjecture|give_up|Unset Guard Checking)\b"
ANNOUNCED: set[str] = set()
ASSUMPTION = r"^\s*(Hypothesis|Hypotheses|Variable|Variables|Context)\b"


@dataclass(frozen=True)
class Row:
    number: int
    proof: Path
    statements: tuple[str, ...]
    machine: str
    test: Path
    code: str


def rows(table: str) -> list[Row]:
    found = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 7 and cells[0].isdigit():
            link = lambda cell: PROOFS / re.search(r"\((.+)\)", cell)[1]  # noqa: E731
            names = tuple(re.findall(r"`(\w+\.\w+)`", cells[4]))
            found.append(Row(int(cells[0]), link(cells[3]), names, cells[4], link(cells[5]), cells[6]))
    return found


TABLE = rows((PROOFS / "README.md").read_text(encoding="utf-8"))


def names_of(code: str) -> Iterator[tuple[str, bool]]:
    """The names in a cell, and whether they are said to be there."""
    for not_yet, name in re.findall(r"(not yet )?`([^`]+)`", code):
        yield name, not not_yet


def exists(name: str) -> bool:
    """Whether the package has it, from its front door on."""
    found: object = riemann_ng
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is not None


def without_comments(source: str) -> str:
    """Coq's comments nest."""
    kept, depth, i = [], 0, 0
    while i < len(source):
        pair = source[i : i + 2]
        if pair in ("(*", "*)"):
            depth += 1 if pair == "(*" else -1
            i += 2
            continue
        if depth == 0:
            kept.append(source[i])
        i += 1
    return "".join(kept)


def proved(module: str) -> set[str]:
    """The statements of a file that end in Qed."""
    path = PROOFS / "coq" / f"{module}.v"
    source = without_comments(path.read_text(encoding="utf-8")) if path.exists() else ""
    found = re.findall(r"^(?:Theorem|Lemma|Corollary)\s+(\w+)(.*?)\bQed\.", source, re.MULTILINE | re.DOTALL)
    return {name for name, body in found if not re.search(r"^(?:Theorem|Lemma|Corollary)\b", body, re.MULTILINE)}


def outside_sections(source: str) -> list[str]:
    """Assumptions that no section closes: axioms by another name."""
    depth, loose = 0, []
    for line in without_comments(source).splitlines():
        depth += bool(re.match(r"\s*Section\b", line)) - bool(re.match(r"\s*End\b", line))
        if depth == 0 and re.match(ASSUMPTION, line):
            loose.append(line)
    return loose


def test_the_table_has_fifteen_theorems():
    assert [row.number for row in TABLE] == list(range(1, 16))


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"theorem-{row.number}")
def test_a_theorem_has_a_proof_that_says_where_it_fails(row):
    text = row.proof.read_text(encoding="utf-8")
    assert row.proof.name.startswith(f"{row.number:02d}-") and text.startswith(f"# Theorem {row.number}: ")
    for heading in ("## Statement", "## Proof", "## Where it fails"):
        assert heading in text
    named = set(re.findall(r"`(test_theorem_\w+)`", text.split("## Where it fails")[1]))
    assert named and named <= set(re.findall(r"^def (test_\w+)", row.test.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"theorem-{row.number}")
def test_a_theorem_has_a_test_that_carries_its_number(row):
    source = row.test.read_text(encoding="utf-8")
    tests = re.findall(r"^def (test_\w+)", source, re.MULTILINE)
    assert len(tests) >= 2 and all(name.startswith(f"test_theorem_{row.number:02d}_") for name in tests)
    assert source.startswith(f'"""Theorem {row.number}: ')


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"theorem-{row.number}")
def test_statements_of_a_theorem_exist(row):
    assert row.statements or row.machine.endswith("in the test")
    for statement in row.statements:
        module, name = statement.split(".")
        assert name in proved(module), f"{statement} is not proved in proofs/coq/{module}.v"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_is_assumed(path):
    source = path.read_text(encoding="utf-8")
    assert not re.search(FORBIDDEN, without_comments(source))
    assert not outside_sections(source)
    assert path.name in (PROOFS / "coq" / "_CoqProject").read_text(encoding="utf-8").split()


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"theorem-{row.number}")
def test_the_code_of_a_theorem_exists_and_its_test_is_about_it(row):
    named, source = list(names_of(row.code)), row.test.read_text(encoding="utf-8")
    assert named
    for name, there in named:
        assert exists(name) == there, f"{name} is {'not there' if there else 'there by now: take the mark away'}"
        assert there or name in ANNOUNCED
        used = {"__add__": " + "}.get(name.split(".")[-1], name.split(".")[-1])
        assert not there or used in source, f"{row.test.name} does not use {name}"


def test_what_is_announced_is_in_the_table():
    assert {name for row in TABLE for name, there in names_of(row.code) if not there} == ANNOUNCED


def test_files_of_tests_and_proofs_are_all_in_the_table():
    assert {row.test for row in TABLE} == {
        PROOFS / f"../tests/theorems/{p.name}" for p in ROOT.glob("tests/theorems/test_*")
    }
    assert {row.proof for row in TABLE} == set(PROOFS.glob("[0-9]*.md"))


def test_these_checks_can_fail():
    assert re.search(FORBIDDEN, without_comments("Lemma x : False. Admitted. (* Qed *)"))
    assert not re.search(FORBIDDEN, without_comments("(* no (* nested *) Axiom here *) Qed."))
    assert outside_sections("Section S.\nVariable n : nat.\nEnd S.\nHypothesis h : False.") == ["Hypothesis h : False."]
    assert "no_such_theorem" not in proved("damping") and proved("no_such_file") == set()
    assert exists("KFAC") and exists("Network.fisher") and not exists("KFAK") and not exists("Network.fischer")
    assert list(names_of("`a`; not yet `b.c`")) == [("a", True), ("b.c", False)]
    assert rows("| 1 | a | b | c |") == []
