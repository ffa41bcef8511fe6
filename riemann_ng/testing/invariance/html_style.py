"""How the pages look, and the button that copies code. Nothing is loaded from anywhere."""

STYLE = """
:root { --paper: #fcfcfa; --card: #ffffff; --ink: #1c2326; --quiet: #5b676d; --line: #dde2e2; --code: #f1f3f2;
  --held: #0a9c83; --refuted: #dc5a2a; --undecided: #a58a00; --none: #8a9499; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181a; --card: #1b2022; --ink: #e7ecea; --quiet: #9aa6a8;
  --line: #333b3e; --code: #232a2d; --held: #14b394; --refuted: #f0703f; --undecided: #d2b53a; --none: #6f7a7f; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.2rem 1rem 3rem; }
h1 { font-size: 1.35rem; line-height: 1.3; margin: 0 0 .4rem; font-weight: 650; }
h2 { font-size: 1.05rem; margin: 2rem 0 .6rem; font-weight: 650; }
p { margin: .4rem 0; }
code, pre { font: .88em/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
h1 code { font-size: .92em; }
h1 code, p code, li code { overflow-wrap: anywhere; }
.quiet { color: var(--quiet); font-size: .9rem; }
.counts { display: flex; flex-wrap: wrap; gap: .35rem; margin: .8rem 0 0; }
.pill { display: inline-block; border-radius: 1rem; padding: .08rem .6rem; font-size: .85rem; white-space: nowrap;
  background: color-mix(in oklab, var(--c) 24%, var(--card)); border: 1px solid
  color-mix(in oklab, var(--c) 55%, var(--card)); }
.held { --c: var(--held); } .refuted { --c: var(--refuted); } .undecided { --c: var(--undecided); }
.not-applicable { --c: var(--none); }
.note { border-left: 3px solid var(--refuted); padding: .3rem .8rem; background: var(--card); }
.scroll { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 3px; }
table.heat { width: 100%; table-layout: fixed; font-size: .84rem; line-height: 1.25; }
table.heat th { font-weight: 550; text-align: left; overflow-wrap: break-word; hyphens: auto; }
table.heat thead td { width: 22%; }
table.heat thead th, table.heat thead td { vertical-align: bottom; text-align: center; color: var(--quiet); }
table.heat tbody th { padding-right: .3rem; }
table.heat tbody td { text-align: center; border-radius: 6px; padding: .32rem .1rem; background: var(--card);
  background: color-mix(in oklab, var(--c, var(--none)) var(--p, 0%), var(--card)); border: 1px solid var(--line); }
table.heat td b { font-weight: 700; }
table.heat td span { display: block; font-variant-numeric: tabular-nums; color: var(--ink); opacity: .85; }
table.heat td small { display: block; font-weight: 650; }
table.heat td.undecided { background-image: repeating-linear-gradient(135deg, transparent 0 6px,
  color-mix(in oklab, var(--undecided) 22%, transparent) 6px 9px); }
table.heat td.not-applicable { color: var(--quiet); border-style: dashed; }
table.heat td.surprise { outline: 3px solid var(--refuted); outline-offset: -2px; }
table.heat td.empty { background: none; border: none; }
table.narrow { max-width: 26rem; }
.legend { font-size: .84rem; color: var(--quiet); }
.bar { display: inline-block; width: 3.2rem; height: .8em; border-radius: 3px; vertical-align: -.05em;
  background: linear-gradient(to right, color-mix(in oklab, var(--c) 55%, var(--card)),
  color-mix(in oklab, var(--c) 20%, var(--card))); border: 1px solid var(--line); }
.bar.refuted { background: linear-gradient(to right, color-mix(in oklab, var(--c) 20%, var(--card)),
  color-mix(in oklab, var(--c) 65%, var(--card))); }
details { border: 1px solid var(--line); border-radius: 8px; background: var(--card); margin: .4rem 0;
  padding: 0 .7rem; }
summary { cursor: pointer; padding: .45rem 0; }
details[open] { padding-bottom: .6rem; }
pre { background: var(--code); border-radius: 6px; padding: .6rem .7rem; overflow-x: auto; margin: .4rem 0; }
.code { position: relative; }
.copy { position: absolute; right: .4rem; top: .4rem; font: .8rem system-ui, sans-serif; color: var(--ink);
  background: var(--card); border: 1px solid var(--line); border-radius: 5px; padding: .15rem .55rem; }
ul { padding-left: 1.1rem; margin: .4rem 0; } li { margin: .35rem 0; }
footer { margin-top: 2rem; border-top: 1px solid var(--line); }
@media (max-width: 34rem) { main { padding: .9rem .6rem 2rem; } table { border-spacing: 2px; }
  table.heat { font-size: .7rem; } table.heat thead th { font-size: .64rem; }
  table.heat thead td { width: 5.8rem; } table.atlas { font-size: .74rem; }
  table.atlas thead th { font-size: .56rem; } }
table.atlas td { padding: .12rem .1rem; } table.atlas th[scope=row] { font-weight: 450; width: 46%; }
table.atlas thead td { width: 46%; }
table.atlas tr.family th { color: var(--quiet); font-weight: 650; padding-top: .6rem; }
table.atlas td.differs { outline: 3px solid var(--refuted); outline-offset: -2px; }
@media (max-width: 34rem) { table.atlas th[scope=row], table.atlas thead td { width: 38%; } }
figure { margin: 0; } figure svg { max-width: 100%; height: auto; }
"""

SCRIPT = """
for (const button of document.querySelectorAll('.copy')) {
  if (!navigator.clipboard) { button.remove(); continue; }
  button.onclick = async () => {
    await navigator.clipboard.writeText(button.parentElement.querySelector('code').textContent);
    button.textContent = 'copied'; setTimeout(() => { button.textContent = 'copy'; }, 1500);
  };
}
"""
