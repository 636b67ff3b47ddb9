"""The style sheet of the report: light and dark by the reader's setting, from a telephone's width on."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --panel: #f4f5f7; --text: #1b1f24; --muted: #57606a; --rule: #d0d5db; --grid: #e4e7eb;
  --band: #eef1f6; --s0: #0b62b8; --s1: #b3470b; --s2: #5d6b16; --mark: #7a2f9a; --bad: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --panel: #1e2329; --text: #e6e9ed; --muted: #9aa5b1; --rule: #3b434c; --grid: #2a3037;
    --band: #20262d; --s0: #69aef2; --s1: #f29a5c; --s2: #b9c95a; --mark: #d59af0; --bad: #ff8a80;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
p { margin: .4rem 0 .8rem; max-width: 50rem; }
a { color: var(--s0); }
small, .muted { color: var(--muted); font-size: .87rem; }
.lead { color: var(--muted); overflow-wrap: anywhere; }
.unfinished { border-left: 4px solid var(--s1); padding-left: .7rem; color: var(--text); }
.own { unicode-bidi: isolate; overflow-wrap: anywhere; white-space: pre-wrap; }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .7rem; margin: 1.2rem 0; }
.tiles div { background: var(--panel); border-radius: 8px; padding: .6rem .8rem; }
.tiles dt { color: var(--muted); font-size: .87rem; }
.tiles dd { margin: 0; }
.tiles b { display: block; font-size: 1.5rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .9rem; }
nav a { padding: .25rem 0; }

figure { margin: 1.2rem 0 1.6rem; min-width: 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0 2rem; }
.plot { display: block; overflow: visible; margin: .5rem 0 0 3.2rem; width: calc(100% - 3.8rem); }
.plot text { font-size: 12px; fill: var(--muted); font-variant-numeric: tabular-nums; }
.axis { margin: 1.6rem 0 0 3.2rem; width: calc(100% - 3.8rem); text-align: center; }
.axis, .strip { font-size: 12px; color: var(--muted); }
.strip { display: flex; margin: .5rem 0 -.4rem 3.2rem; width: calc(100% - 3.8rem); }
.strip span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; padding-left: 3px; }
.strip span + span { border-left: 1px solid var(--muted); }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; font-size: .87rem; margin-top: .2rem; }
.legend span { display: inline-flex; gap: .4rem; align-items: center; }
.legend svg { flex: none; overflow: visible; }
.at { overflow: visible; }
.band { fill: var(--band); }
.border { stroke: var(--muted); stroke-dasharray: 2 3; }
.grid-line { stroke: var(--grid); }
.zero { stroke: var(--muted); }
.line { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.line.s0 { stroke: var(--s0); }
.line.s1 { stroke: var(--s1); stroke-dasharray: 7 4; }
.line.s2 { stroke: var(--s2); stroke-dasharray: 2 4; }
.dot, .bar { stroke: var(--page); stroke-width: 1; }
.s0.dot, .s0.bar { fill: var(--s0); }
.s1.dot { fill: var(--s1); }
.s2.dot { fill: var(--s2); }
.diamond { fill: var(--mark); stroke: var(--page); }
.whisker { stroke: var(--mark); stroke-width: 2; }
.cell { display: block; overflow: visible; min-width: 8rem; }
.cell .whisker { stroke: var(--s0); }
.life { stroke: var(--text); stroke-width: 1.5; }
.life.active { stroke: var(--s0); stroke-width: 5; }
.life.retired { stroke: var(--muted); stroke-dasharray: 1 4; }
.trial { fill: var(--s1); }
.share { height: .8rem; background: var(--s0); border-radius: 2px; }

.scroll { overflow-x: auto; margin: .8rem 0 1.4rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
caption { text-align: left; color: var(--muted); font-size: .87rem; padding-bottom: .3rem; }
caption span { display: inline-block; position: sticky; left: 0; max-width: min(100%, calc(100vw - 4rem)); }
th, td { text-align: left; vertical-align: top; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--grid); }
thead th { font-weight: 600; border-bottom-color: var(--rule); vertical-align: bottom; }
tbody th { font-weight: 400; }
td { font-variant-numeric: tabular-nums; }
td small { white-space: nowrap; }
.numbers td, .numbers th, .drawn td { white-space: nowrap; }
.bank ul { margin: .2rem 0 0; padding-left: 1.1rem; font-size: .87rem; color: var(--muted); }
.bank tr > :nth-child(1) { width: 23%; }
.bank tr > :nth-child(4) { width: 20%; }
.bank tr > :nth-child(5) { width: 21%; }
.bank td:nth-child(5) { font-size: .8rem; }
.bank tr > :nth-child(6) { width: 26%; }
.drawn td:has(svg), .drawn td:has(.share) { width: 35%; min-width: 8rem; }
dl { margin: .6rem 0; }
section dl div { display: grid; grid-template-columns: 9rem 1fr; gap: .8rem; padding: .2rem 0; }
section dt { color: var(--muted); }
section dd { margin: 0; }

details { border: 1px solid var(--rule); border-radius: 8px; padding: .1rem .9rem; margin: .6rem 0; }
summary { cursor: pointer; padding: .45rem 0; overflow-wrap: anywhere; }
details[open] > summary { border-bottom: 1px solid var(--grid); margin-bottom: .6rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1.6rem; }
.pair ol { padding-left: 1.6rem; margin: .3rem 0; }
.pair li { margin-bottom: .5rem; }
.pair li > div { color: var(--muted); font-size: .9rem; }
.pair em { color: var(--bad); font-style: normal; }
:focus-visible { outline: 2px solid var(--s0); outline-offset: 2px; }

@media (max-width: 700px) {
  .pair { grid-template-columns: 1fr; }
  section dl div { grid-template-columns: 1fr; gap: 0; padding: .3rem 0; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tiles b { font-size: 1.25rem; }
  .cards, .cards caption, .cards tbody, .cards tr, .cards th, .cards td { display: block; max-width: none; }
  .cards tr > :nth-child(n) { width: auto; padding: .25rem 0; border: 0; white-space: normal; }
  .cards tbody tr { border-bottom: 1px solid var(--rule); padding: .5rem 0; }
  .cards tbody th { font-size: 1.05em; overflow-wrap: anywhere; }
  .cards thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .cards td::before { content: attr(data-label) ": "; color: var(--muted); }
  .cards .rate br { display: none; }
}
"""
