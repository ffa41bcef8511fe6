"""The unifying page: operations are counted right, and its tables are what the code says today."""

import os
from pathlib import Path

import pytest
import torch

from riemann_ng.errors import InvalidSetting
from riemann_ng.testing.invariance import page
from riemann_ng.testing.invariance.atlas import all_rows
from riemann_ng.testing.invariance.costs import Operations, passes

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
THOROUGH = os.environ.get("RIEMANN_NG_PROFILE") == "thorough"


def counted(function, *arguments):
    with Operations() as counter:
        function(*arguments)
    return counter.total


def matrix(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def definite(n):
    return matrix(n, n) @ matrix(n, n).mT + n * torch.eye(n, dtype=torch.float64)


@pytest.mark.parametrize(
    ("function", "arguments", "operations"),
    [
        (torch.mm, (matrix(3, 4), matrix(4, 5)), 2 * 3 * 4 * 5),
        (torch.bmm, (matrix(2, 3, 4), matrix(2, 4, 5)), 2 * 2 * 3 * 4 * 5),
        (torch.mv, (matrix(3, 4), matrix(4)), 2 * 3 * 4),
        (torch.add, (matrix(3, 4), 1.0), 12),
        (torch.linalg.cholesky, (definite(6),), 6**3 / 3),
        (torch.linalg.eigh, (definite(6),), 9 * 6**3),
        (torch.cholesky_solve, (matrix(6, 2), definite(6)), 2 * 6 * 6 * 2),
        (torch.transpose, (matrix(3, 4), 0, 1), 0),
    ],
)
def test_operations_are_those_of_the_textbook(function, arguments, operations):
    assert counted(function, *arguments) == operations


def test_a_pass_is_its_matrix_products():
    at = page.sized(16)
    n = at.x.shape[0]
    products = 2 * n * (16 * 16 * 2 + 16 * 4)
    backward = products + products - 2 * n * 16 * 16  # no gradient of the inputs
    assert products + backward < passes(at) < 1.2 * (products + backward)


def cells(line):
    return page.markdown("x", [line]).splitlines()[3]


NAMES = list(dict(page.directions(page.problem())))


@pytest.mark.parametrize("name", NAMES)
def test_a_direction_is_as_the_page_says(name):
    assert cells(page.of_direction(name, cases=1)) in PAGE.read_text("utf-8").splitlines()


ROWS = {row.name: row for row in all_rows(quick=not THOROUGH)}


@pytest.mark.parametrize("name", ROWS)
def test_an_optimizer_is_as_the_page_says(name):
    assert cells(page.of_row(ROWS[name], cases=1)) in PAGE.read_text("utf-8").splitlines()


def test_no_measurement_contradicts_a_claim():
    """A claim may be less than what is found, never more."""
    text = PAGE.read_text("utf-8")
    for line in text.splitlines():
        for cell in line.split("|"):
            if "claimed" in cell and "measured" in cell:
                said, found = cell.split("claimed ")[1].split(", **measured ")
                assert said == "nothing", f"{line}: {found}"


def test_a_page_without_a_place_for_its_table_is_refused():
    with pytest.raises(InvalidSetting, match="the page has no place for a table, <!-- directions: generated"):
        page.updated("# nothing here", "directions", [])
