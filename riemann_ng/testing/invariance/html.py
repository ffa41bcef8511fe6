"""An invariance report as one HTML page: nothing is loaded from elsewhere, and it reads on a phone, light or dark.

The heatmap is a table whose cells are coloured by the logarithm of the discrepancy; every cell says its verdict in a
word, so that no colour is needed to read it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from .html_style import SCRIPT, STYLE
from .records import HELD, NOT_APPLICABLE, REFUTED, SYMBOLS, UNDECIDED, Cell, InvarianceReport
from .table import SPACES, largest_kept, number, summary


def html_page(report: InvarianceReport) -> str:
    """The page of a report."""
    return page(f"Invariance of {report.subject}", "\n".join(_body(report)))


def page(title: str, body: str) -> str:
    """A whole page around its content."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _body(report: InvarianceReport) -> Iterator[str]:
    yield f"<header><h1>Invariance of <code>{escape(report.subject)}</code></h1>"
    yield f'<p class="quiet">on <code>{escape(report.model)}</code></p>'
    yield f'<p class="counts">{_counts(report)}</p>'
    if kept := largest_kept(report):
        told = "; ".join(f"{on}: <b>{escape(', '.join(groups) or 'nothing')}</b>" for on, groups in kept.items())
        yield f"<p>Largest groups kept — {told}.</p>"
    yield "</header>"
    for note in report.notes:
        yield f'<p class="note" role="note">{escape(note)}</p>'
    columns = [on for on in report.on if on in SPACES]
    if columns:
        yield f"<section><h2>Changes of coordinates</h2>{_heatmap(report, columns)}{LEGEND}</section>"
    rest = [cell for on in report.on if on not in SPACES for cell in report if cell.on == on]
    if rest:
        yield f"<section><h2>Changes of the training problem</h2>{_list(rest)}</section>"
    if any(cell.claimed is not None for cell in report):
        yield f"<section><h2>Claimed and measured</h2>{_claims(report)}</section>"
    if report.refuted:
        yield "<section><h2>Refuted</h2>" + "".join(map(_refutation, report.refuted)) + "</section>"
    if reasons := "".join(_reasons(report)):
        yield f"<section><h2>Why the others are not decided</h2><ul>{reasons}</ul></section>"
    yield f"<footer>{_settings(report)}</footer>"


def _counts(report: InvarianceReport) -> str:
    parts = (
        f'<span class="pill {css(verdict)}">{SYMBOLS[verdict]} {len(report.of(verdict))} {verdict}</span>'
        for verdict in (HELD, REFUTED, UNDECIDED, NOT_APPLICABLE)
        if report.of(verdict)
    )
    return " ".join(parts) or escape(summary(report))


def _heatmap(report: InvarianceReport, columns: Sequence[str]) -> str:
    groups = dict.fromkeys(cell.group for cell in report if cell.on in columns)
    head = "".join(f'<th scope="col">{escape(on)}</th>' for on in columns)
    rows = []
    for group in groups:
        cells = "".join(_cell(report.cells.get((on, group))) for on in columns)
        rows.append(f'<tr><th scope="row">{escape(group)}</th>{cells}</tr>')
    return (
        '<div class="scroll"><table class="heat"><thead><tr><td></td>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return '<td class="empty"></td>'
    mark = "claimed" if cell.surprising else "not claimed" if cell.exceeds else ""
    marked = f"<small>{mark}</small>" if mark else ""
    title = escape(str(cell) + (f" — lost at {cell.blame}" if cell.blame else ""), quote=True)
    return (
        f'<td class="{css(cell.verdict)}{" surprise" if cell.surprising else ""}" style="--p:{strength(cell)}%" '
        f'title="{title}"><b>{SYMBOLS[cell.verdict]}</b> {cell.verdict}<span>{number(cell.discrepancy)}</span>'
        f"{marked}</td>"
    )


def strength(cell: Cell) -> int:
    """How strong the colour is, in percent: of a held cell the smaller the discrepancy, of another the larger."""
    if cell.discrepancy is None:
        return 0
    log = math.log10(min(max(cell.discrepancy, 1e-16), 10.0))
    if cell.verdict == HELD:
        return round(20 + 35 * min(1.0, max(0.0, (-log - 5) / 11)))
    return round(20 + 45 * min(1.0, max(0.0, (log + 3) / 3)))


LEGEND = (
    '<p class="legend" aria-label="colours">'
    '<span class="bar held"></span> 1e-16 to 1e-6: the same, up to rounding '
    '<span class="bar refuted"></span> 1e-3 to 1: different. '
    "Numbers are the largest difference between the predictions of two runs that should agree, "
    "in units of how far training moved them.</p>"
)


def _list(cells: Sequence[Cell]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(cell.on)}: {escape(cell.group)}</th>{_cell(cell)}</tr>' for cell in cells
    )
    return f'<div class="scroll"><table class="heat narrow"><tbody>{rows}</tbody></table></div>'


def _claims(report: InvarianceReport) -> str:
    """In sentences: what agrees is counted, what does not is named."""
    compared = [c for c in report if c.claimed is not None and c.verdict in (HELD, REFUTED)]
    agreeing = [c for c in compared if c.claimed == (c.verdict == HELD)]
    text = f"<p>The expression says which symmetries it keeps. {len(agreeing)} of {len(compared)} cells agree.</p>"
    items = [f"<li><b>Claimed, but refuted:</b> {escape(f'{c.group} of {c.on}')}.</li>" for c in report if c.surprising]
    items += [
        f"<li>Not claimed, but held here: {escape(f'{c.group} of {c.on}')}"
        f"{f', which {escape(c.blame)} need not keep' if c.blame else ''}.</li>"
        for c in report
        if c.exceeds
    ]
    return text + (f"<ul>{''.join(items)}</ul>" if items else "")


def _refutation(cell: Cell) -> str:
    example = cell.counterexample
    blame = f'<p>Lost at <code class="wrap">{escape(cell.blame)}</code>.</p>' if cell.blame else ""
    detail = ""
    if example is not None:
        facts = [f"{number(example.discrepancy)} after {example.steps} step{'s' * (example.steps != 1)}"]
        facts += [f"moved: {', '.join(example.moved)}"] if example.moved else []
        facts += [f"seed {example.seed}"]
        detail = f'<p class="quiet">{escape("; ".join(facts))}</p>'
        if example.element:
            detail += f"<pre>{escape(example.element)}</pre>"
        if example.model:
            detail += f'<p class="quiet">on <code>{escape(example.model)}</code></p>'
        if example.code:
            detail += (
                '<div class="code"><button type="button" class="copy">copy</button>'
                f"<pre><code>{escape(example.code.strip())}</code></pre></div>"
            )
    return (
        f'<details><summary><span class="pill refuted">✗ {number(cell.discrepancy)}</span> '
        f"{escape(cell.group)} of {escape(cell.on)}</summary>{blame}{detail}</details>"
    )


def _reasons(report: InvarianceReport) -> Iterator[str]:
    said: dict[tuple[str, str], list[str]] = {}
    for cell in report:
        if cell.reason:
            said.setdefault((cell.verdict, cell.reason), []).append(f"{cell.group} of {cell.on}")
    for (verdict, reason), cells in said.items():
        yield f'<li><span class="pill {css(verdict)}">{SYMBOLS[verdict]} {verdict}</span> '
        yield f"{escape(', '.join(cells))}: {escape(reason)}.</li>"


def _settings(report: InvarianceReport) -> str:
    tried = sum(cell.cases for cell in report)
    facts = [f"{tried} cases in {report.seconds:.1f} s"]
    facts += [f"{key} {number(v) if isinstance(v, float) else v}" for key, v in report.settings.items()]
    return f'<p class="quiet">{escape("; ".join(facts))}</p>'


def css(verdict: str) -> str:
    """The class of a verdict."""
    return verdict.replace(" ", "-")
