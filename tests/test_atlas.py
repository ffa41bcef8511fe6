"""The atlas: what is claimed of known methods, measured; and that a false claim, or a wrong method, is found.

`riemann-ng invariance --atlas` measures all rows (some four minutes of one core); here are those that are quick, each
with one element of every group, and all of them where the profile is thorough.
"""

import dataclasses
import os
import xml.etree.ElementTree as ET

import pytest
import torch

from riemann_ng import cli
from riemann_ng.errors import InvalidSetting
from riemann_ng.testing.invariance import atlas as module
from riemann_ng.testing.invariance.atlas import COLUMNS, INSIDE, Atlas, all_rows, label, measure, run_atlas, tried_first
from riemann_ng.testing.invariance.atlas_picture import atlas_page, atlas_svg, colour, shown
from riemann_ng.testing.invariance.atlas_rows import GROUP, KEPT, WORDS
from riemann_ng.testing.invariance.methods import matrices
from riemann_ng.testing.invariance.subjects import optimizer

THOROUGH = os.environ.get("RIEMANN_NG_PROFILE") == "thorough"
ROWS = {row.name: row for row in all_rows(quick=not THOROUGH)}
EVERY = {row.name: row for row in all_rows()}


@pytest.mark.parametrize("name", ROWS)
def test_a_method_keeps_what_theory_says(name):
    found = measure(ROWS[name], cases=1)
    assert found.mismatches == ()
    assert found.worst_held < 1e-6 and (found.least_lost is None or found.least_lost > 1e-3)
    assert 0.02 < found.displacement < 1


# --- negative controls ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"activations": "Aff"}, "activations: expected Aff, measured O"),
        ({"activations": "SP"}, "activations: expected SP, measured O"),
        ({"hidden": "O"}, "hidden: expected O, measured T.O"),
        ({"outputs": "T.CO"}, "outputs: expected T.CO, measured T.O"),
        ({"joint": False}, "joint: expected no, measured yes"),
        ({"loss": True}, "loss: expected yes, measured no"),
    ],
)
def test_a_false_claim_is_listed(claims, said):
    found = measure(dataclasses.replace(EVERY["SGD"], **claims), cases=1)
    assert len(found.mismatches) == 1 and found.mismatches[0].startswith(said)
    assert all(found.measured[c] == told for c, told in zip(COLUMNS, ("O", "T.O", "T.O", True, False), strict=True))


class Swapped(matrices.Shampoo):
    """Shampoo with L put where R belongs."""

    def direction(self, gradient, point, state):
        square = gradient[:, : gradient.shape[0]]
        step = torch.zeros_like(gradient)
        step[:, : square.shape[0]] = matrices.power(square.mT @ square, -0.25) @ square
        return step


class Transposed(matrices.Muon):
    """Muon with a norm by columns in the place of the matrix sign."""

    def direction(self, gradient, point, state):
        return gradient / gradient.norm(dim=0)


class WithoutFrames(matrices.SOAP):
    """SOAP whose frames are the coordinates once its first steps, of descent, are over: Adam."""

    def direction(self, gradient, point, state):
        step = super().direction(gradient, point, state)
        return step if state["steps"] <= self.warmup else gradient / (gradient.abs() + 1e-3)


@pytest.mark.parametrize(("row", "wrong"), [("Shampoo", Swapped), ("Muon", Transposed), ("SOAP", WithoutFrames)])
def test_a_method_written_wrongly_does_not_pass_for_the_right_one(row, wrong):
    mutant = dataclasses.replace(EVERY[row], subject=lambda: optimizer(lambda m: wrong(m, 0.1), row))
    assert measure(mutant, cases=1).mismatches != ()


# --- the certificate --------------------------------------------------------------------------------------------------


def test_the_groups_of_a_name_are_closed_under_subgroups():
    assert all(INSIDE[g] <= kept for kept in KEPT.values() for g in kept)
    assert len(set(KEPT.values())) == len(KEPT) and set(WORDS) == set(KEPT)


@pytest.mark.parametrize("name", KEPT)
def test_what_is_tried_first_decides_every_group(name):
    """A few cells are enough where the claim is right, and then nothing is left open."""
    kept, decided, tried = KEPT[name], set(), 0
    for group in tried_first(name):
        if group in decided:
            continue
        tried += 1
        decided |= {
            h for h in GROUP if (group in kept and h in INSIDE[group]) or (group not in kept and group in INSIDE[h])
        }
    assert decided == set(GROUP) and tried <= 5
    assert label(kept) == name


def test_a_set_of_groups_without_a_name_is_told_by_its_largest():
    assert label(frozenset({"T", "P"})) == "T+P"


# --- the table, the picture, the page ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def atlas():
    rows = [measure(EVERY["SGD"], cases=1), measure(dataclasses.replace(EVERY["Adam"], activations="O"), cases=1)]
    return Atlas(tuple(rows), 1.0)


def test_mismatches_are_loud(atlas):
    assert "MEASUREMENT DIFFERS FROM THEORY in 1 places:" in str(atlas) and "← differs" in str(atlas)
    assert "Adam: activations: expected O, measured SP" in str(atlas)
    assert "≠ SP" in atlas_svg(atlas) and "differs from theory in 1 places" in atlas_page(atlas)
    right = Atlas(atlas.rows[:1], 1.0)
    assert "agrees with theory in every cell" in str(right) and "≠" not in atlas_svg(right) + atlas_page(right)


def test_the_atlas_survives_json(atlas):
    again = Atlas.from_json(atlas.to_json())
    assert again.mismatches == atlas.mismatches and str(again) == str(atlas) and again["SGD"].family == "gradient"


def test_the_picture_is_a_drawing_of_its_own(atlas):
    root = ET.fromstring(atlas_svg(atlas))
    texts = ["".join(t.itertext()) for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"SGD", "Adam", "O", "T⋊O", "T⋊SP"} <= set(texts)
    assert "prefers-color-scheme:dark" in atlas_svg(atlas) and "href" not in atlas_svg(atlas)


def test_letters_are_legible_on_every_colour():
    def luminance(c):
        parts = [int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for scheme, ink in (("light", "#1c2326"), ("dark", "#eef2f0")):
        for k in range(11):
            a, b = sorted([luminance(colour(k / 10, scheme)), luminance(ink)])
            assert (b + 0.05) / (a + 0.05) > 4.5, (scheme, k)
    assert shown("T.SP?") == "T⋊SP?" and shown(None) == "?" and shown(True) == "yes"


# --- running all ------------------------------------------------------------------------------------------------------


def test_rows_are_chosen_by_name_and_run_in_several_processes():
    seen = []
    found = run_atlas(names=["SGD", "Adam"], jobs=2, cases=1, progress=lambda k, n, row: seen.append((k, n, row.name)))
    assert seen == [(1, 2, "SGD"), (2, 2, "Adam")] and not found.mismatches
    alone = run_atlas(names=["SGD", "Adam"], cases=1)
    assert [row.measured for row in alone.rows] == [row.measured for row in found.rows]


def test_what_cannot_be_run_is_refused():
    with pytest.raises(InvalidSetting, match=r"no method is called 'Adamm'\. There are SGD, "):
        run_atlas(names=["Adamm"])
    with pytest.raises(InvalidSetting, match="jobs=0, expected at least 1"):
        run_atlas(jobs=0)


def test_the_command_writes_the_atlas(monkeypatch, tmp_path, capsys):
    wrong = dataclasses.replace(EVERY["SGD"], activations="Aff")
    for rows, status in (([EVERY["SGD"]], 0), ([wrong], 1)):
        monkeypatch.setattr(module, "all_rows", lambda quick=False, rows=rows: rows)
        files = [tmp_path / name for name in ("a.html", "a.json", "a.svg")]
        line = ["--quick", "--jobs", "1", "--html", str(files[0]), "--json", str(files[1]), "--picture", str(files[2])]
        assert cli.main(["invariance", "--atlas", *line]) == status
        assert all(path.stat().st_size > 500 for path in files)
        assert ("MEASUREMENT DIFFERS" in capsys.readouterr().out) == bool(status)
