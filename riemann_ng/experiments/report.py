"""One page of all reproductions that were run: it loads nothing from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from ..testing.invariance.html import page
from .base import Experiment
from .output import versions
from .records import Check, Results, Table, number

Found = Sequence[tuple[Experiment, Results]]
WIDE = "<style>table.found { width: 100%; font-size: .88rem; line-height: 1.35; } table.found td, table.found th { "
WIDE += "text-align: left; vertical-align: top; padding: .15rem .5rem; border-bottom: 1px solid var(--line); } "
WIDE += "table.found td.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; } figure img { "
WIDE += "max-width: 100%; height: auto; background: #fff; border-radius: 8px; } figcaption { color: var(--quiet); "
WIDE += "font-size: .9rem; }</style>"


def report(found: Found, pictures: Mapping[str, bytes]) -> str:
    """The page; `pictures` are PNG files by the names of their files."""
    return page("Reproductions", "\n".join(_body(found, pictures)))


def _body(found: Found, pictures: Mapping[str, bytes]) -> Iterator[str]:
    held = sum(results.held for _, results in found)
    yield f"{WIDE}<header><h1>Reproductions</h1><p class='quiet'>{held} of {len(found)} hold.</p><ul>"
    for experiment, results in found:
        yield f'<li>{_verdict(results.held)} <a href="#{experiment.name}">{escape(experiment.title)}</a></li>'
    yield "</ul></header>"
    for experiment, results in found:
        yield from _section(experiment, results, pictures)
    facts = "; ".join(f"{name} {version}" for name, version in versions().items())
    yield f'<footer><p class="quiet">{escape(facts)}</p></footer>'


def _section(experiment: Experiment, results: Results, pictures: Mapping[str, bytes]) -> Iterator[str]:
    yield f'<section id="{experiment.name}"><h2>{escape(experiment.title)} {_verdict(results.held)}</h2>'
    yield f"<p>{escape(experiment.claim)}</p><p class='quiet'>{escape(experiment.source)}. "
    data = f", {escape(results.data)}" if results.data else ""
    yield f"{results.size}, seed {results.seed}{data}, {results.seconds:.1f} s.</p>"
    for fault in results.faults:
        yield f'<div class="note" role="note">Stopped in {escape(fault.part)}:<pre>{escape(fault.error)}</pre></div>'
    for picture in results.pictures:
        file = f"{results.name}-{picture.name}.png"
        if file in pictures:
            data = base64.b64encode(pictures[file]).decode("ascii")
            yield f'<figure><img alt="{escape(picture.caption, quote=True)}" src="data:image/png;base64,{data}">'
            yield f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    yield '<div class="scroll"><table class="found"><thead><tr><td></td><th>claim</th><th>measured</th>'
    yield "<th>expected</th></tr></thead><tbody>" + "".join(map(_row, results.checks)) + "</tbody></table></div>"
    yield from map(_table, results.tables)
    if results.numbers:
        rows = "".join(
            f'<tr><td>{escape(k)}</td><td class="n">{number(v)}</td></tr>' for k, v in results.numbers.items()
        )
        yield f"<details><summary>{len(results.numbers)} numbers</summary>"
        yield f'<table class="found"><tbody>{rows}</tbody></table></details>'
    yield "</section>"


def _row(check: Check) -> str:
    kind = '<span class="quiet">control: </span>' if check.control else ""
    title = f' title="{escape(check.why, quote=True)}"' if check.why else ""
    return (
        f"<tr{title}><td>{_verdict(check.held)}</td><td>{kind}{escape(check.claim)}</td>"
        f'<td class="n">{number(check.measured)}</td><td class="n">{escape(check.bound)}</td></tr>'
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    cells = (
        "".join(
            f"<td>{escape(cell)}</td>" if isinstance(cell, str) else f'<td class="n">{number(cell)}</td>'
            for cell in row
        )
        for row in table.rows
    )
    rows = "".join(f"<tr>{row}</tr>" for row in cells)
    return (
        f'<div class="scroll"><table class="found"><caption>{escape(table.caption)}</caption><thead><tr>{head}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _verdict(held: bool) -> str:
    return f'<span class="pill {"held" if held else "refuted"}">{"✓ holds" if held else "✗ fails"}</span>'
