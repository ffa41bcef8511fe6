"""The atlas as a picture and as a page: rows are methods, columns spaces, a cell the largest group that is kept.

Both are drawn for light and for dark, whichever the reader's screen is; letters say what colours say.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from .atlas import COLUMNS, Atlas, AtlasRow, Kept, told
from .atlas_rows import WORDS
from .html import page
from .table import number

HEADS = {
    "activations": "activations 𝒜", "hidden": "pre-activations 𝒮", "outputs": "outputs", "joint": "joint scales",
    "loss": "loss scale",
}  # fmt: skip
SIZES = {
    "Aff": 1.0, "GL": 0.86, "T.CO": 0.74, "T.O": 0.6, "T.M": 0.54, "CO": 0.5, "M": 0.46, "O": 0.4, "T.SP": 0.28,
    "CSP": 0.2, "SP": 0.15, "T": 0.1, "nothing": 0.0,
}  # fmt: skip
"""How large a group is, for the colour; a partial order drawn on a line."""
LEGEND = ("Aff", "GL", "T.CO", "T.O", "T.M", "CO", "O", "M", "T.SP", "CSP", "SP")
RAMP = {"light": ("#f6d9c6", "#eceadb", "#4cbca5"), "dark": ("#5f3822", "#3b4139", "#0f7464")}
"""From the smallest group over the middle to the largest."""
LINE, NAME, CELL, LEFT, TOP = 19, 282, 92, 14, 96


WHAT = (
    "<p>The same training is run on a small network and on its twins, the same function in other coordinates. A cell "
    "is the largest group under which all predictions agree, step by step.</p>"
)
SCALES = (
    "<p>Joint scales multiply both sides of a layer without biases by one number. Loss scale: the training is the same "
    "when the loss is multiplied.</p>"
)


def shown(kept: Kept) -> str:
    """A cell as it is printed, T⋊O for "T.O"."""
    return told(kept).replace("T.", "T⋊")


def size(kept: Kept) -> float | None:
    """From 0 to 1; None where there is no colour."""
    if isinstance(kept, str):
        return SIZES.get(kept.rstrip("?"), 0.3)
    return 0.6 if kept else None


def colour(strength: float, scheme: str) -> str:
    """Between the colours of the ramp, as #rrggbb."""
    low, middle, high = ([int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in RAMP[scheme])
    a, b, t = (low, middle, 2 * strength) if strength < 0.5 else (middle, high, 2 * strength - 1)
    return "#" + "".join(f"{round(x + (y - x) * t):02x}" for x, y in zip(a, b, strict=True))


def families(atlas: Atlas) -> dict[str, list[AtlasRow]]:
    found: dict[str, list[AtlasRow]] = {}
    for row in atlas.rows:
        found.setdefault(row.family, []).append(row)
    return found


def legend(atlas: Atlas) -> list[str]:
    """The groups that occur, by their letters and names."""
    present = {str(row.measured[c]).rstrip("?") for row in atlas.rows for c in ("activations", "hidden", "outputs")}
    return [name for name in LEGEND if name in present]


def atlas_svg(atlas: Atlas) -> str:
    """The picture for a page: one file, drawn for light and for dark."""
    rows = sum(1 + len(members) for members in families(atlas).values())
    names = legend(atlas)
    width = LEFT * 2 + NAME + CELL * len(COLUMNS)
    height = TOP + rows * LINE + 26 + 16 * ((len(names) + 1) // 2) + 12
    body = "\n".join(_drawn(atlas, width, TOP + rows * LINE, names))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="The largest group of changes of coordinates that each method keeps">\n'
        f"<style>{_style()}</style>\n"
        f'<rect class="paper" width="{width}" height="{height}" rx="10"/>\n{body}\n</svg>\n'
    )


def _style() -> str:
    def colours(scheme: str, ink: str, quiet: str, paper: str, warn: str) -> str:
        cells = "".join(f".k{round(100 * s)}{{fill:{colour(s, scheme)}}}" for s in (*SIZES.values(), 0.3))
        return (
            f"text{{fill:{ink}}}.quiet{{fill:{quiet}}}.paper{{fill:{paper}}}.wrong{{stroke:{warn};stroke-width:2.5}}"
            f"{cells}"
        )

    light = colours("light", "#1c2326", "#5b676d", "#fcfcfa", "#d1351b")
    dark = colours("dark", "#eef2f0", "#9aa6a8", "#14181a", "#ff7a5c")
    return (
        "text{font:13px system-ui,-apple-system,'Segoe UI',sans-serif}.head,.family{font-weight:650}"
        ".head{font-size:11.5px}.title{font:650 17px system-ui,sans-serif}.cell{text-anchor:middle}"
        ".small{font-size:12px}"
        f"{light}@media(prefers-color-scheme:dark){{{dark}}}"
    )


def _drawn(atlas: Atlas, width: int, bottom: int, names: list[str]) -> Iterator[str]:
    yield f'<text class="title" x="{LEFT}" y="30">Which changes of coordinates can a method not see?</text>'
    yield (
        f'<text class="quiet small" x="{LEFT}" y="50">The largest group that it keeps, measured: '
        f"the same training in other coordinates makes the same predictions.</text>"
    )
    for k, column in enumerate(COLUMNS):
        x = LEFT + NAME + CELL * k + CELL / 2
        for line, word in enumerate(HEADS[column].split(" ")):
            yield f'<text class="cell head" x="{x}" y="{TOP - 22 + 15 * line}">{word}</text>'
    y = TOP
    for family, members in families(atlas).items():
        yield f'<text class="quiet family small" x="{LEFT}" y="{y + 14}">{escape(family)}</text>'
        y += LINE
        for row in members:
            yield f'<text x="{LEFT + 8}" y="{y + 14}">{escape(row.name)}</text>'
            yield from _cells(row, y)
            y += LINE
    for k, name in enumerate(names):
        x, at = LEFT + (width - 2 * LEFT) / 2 * (k % 2), bottom + 26 + 16 * (k // 2)
        yield f'<rect class="k{round(100 * SIZES[name])}" x="{x}" y="{at - 11}" width="46" height="14" rx="3"/>'
        yield f'<text class="cell small" x="{x + 23}" y="{at}">{shown(name)}</text>'
        yield f'<text class="quiet small" x="{x + 54}" y="{at}">{WORDS[name]}</text>'


def _cells(row: AtlasRow, y: int) -> Iterator[str]:
    for k, column in enumerate(COLUMNS):
        kept = row.measured[column]
        strength, x = size(kept), LEFT + NAME + CELL * k
        wrong = " wrong" if any(m.startswith(f"{column}:") for m in row.mismatches) else ""
        if strength is not None:
            yield (
                f'<rect class="k{round(100 * strength)}{wrong}" x="{x + 1}" y="{y + 1}" width="{CELL - 2}" '
                f'height="{LINE - 2}" rx="3"/>'
            )
        mark = "≠ " if wrong else ""
        yield f'<text class="cell" x="{x + CELL / 2}" y="{y + 14}">{mark}{escape(shown(kept))}</text>'


def atlas_page(atlas: Atlas) -> str:
    """The atlas with its numbers."""
    cases = sum(row.cases for row in atlas.rows)
    wrong = atlas.mismatches
    verdict = (
        f'<div class="note" role="note"><b>Measurement differs from theory in {len(wrong)} places.</b><ul>'
        + "".join(f"<li>{escape(what)}</li>" for what in wrong)
        + "</ul></div>"
        if wrong
        else "<p>Measurement agrees with theory in every cell.</p>"
    )
    body = [
        "<header><h1>Which changes of coordinates can a method not see?</h1>",
        WHAT,
        f'<p class="quiet">{len(atlas.rows)} methods, {cases} cases in {atlas.seconds:.0f} s.</p>{verdict}</header>',
        "<section>" + _table(atlas) + "</section>",
        "<section><h2>Groups</h2><ul>",
        *(f"<li><b>{shown(name)}</b>: {WORDS[name]}</li>" for name in legend(atlas)),
        "</ul>" + SCALES + "</section>",
        "<section><h2>Numbers</h2>" + _numbers(atlas) + "</section>",
    ]
    return page("Atlas of invariance", "\n".join(body))


def _table(atlas: Atlas) -> str:
    broken = {"activations": "acti&shy;vations", "outputs": "out&shy;puts"}  # where a phone may break them
    words = (" ".join(broken.get(w, w.replace("activ", "acti&shy;v")) for w in HEADS[c].split(" ")) for c in COLUMNS)
    head = "".join(f'<th scope="col">{told}</th>' for told in words)
    lines = []
    for family, members in families(atlas).items():
        lines.append(f'<tr class="family"><th colspan="{1 + len(COLUMNS)}" scope="colgroup">{escape(family)}</th></tr>')
        for row in members:
            cells = "".join(_td(row, column) for column in COLUMNS)
            lines.append(f'<tr><th scope="row">{escape(row.name)}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table class="heat atlas"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _td(row: AtlasRow, column: str) -> str:
    kept = row.measured[column]
    wrong = any(m.startswith(f"{column}:") for m in row.mismatches)
    strength = round(55 * (size(kept) or 0.0))
    words = WORDS.get(str(kept).rstrip("?"), told(kept))
    differs = f", expected {told(row.expected[column])}" if wrong else ""
    return (
        f'<td class="held{" differs" if wrong else ""}" style="--p:{strength}%" title="{escape(words + differs)}">'
        f"{'≠ ' if wrong else ''}{escape(shown(kept))}</td>"
    )


def _numbers(atlas: Atlas) -> str:
    items = (
        f"<li><b>{escape(row.name)}</b>{f' ({escape(row.note)})' if row.note else ''}: kept to "
        f"{number(row.worst_held)}, lost by at least {number(row.least_lost) or 'nothing'}; predictions moved by "
        f"{number(row.displacement)}</li>"
        for row in atlas.rows
    )
    return f"<details><summary>by method</summary><ul>{''.join(items)}</ul></details>"
