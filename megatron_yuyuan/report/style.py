"""The style sheet of the page: light and dark as the reader's system is, from a phone's width up."""

STYLE = """
:root { color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --text: #1b2530; --soft: #55616f; --rule: #d9dee5; --grid: #e6eaef;
  --c1: #1566c0; --c2: #c4500c; --c3: #0e7f74; --c4: #7541c8; --c5: #94660a; --c6: #c0223f;
  --c7: #6b7785; --c8: #a7b1bd; }
@media (prefers-color-scheme: dark) { :root {
  --page: #10151b; --card: #19202a; --text: #e7ecf2; --soft: #a3afbd; --rule: #323c49; --grid: #28313d;
  --c1: #6fb1ff; --c2: #ff9f5f; --c3: #4fcfbf; --c4: #bb9dff; --c5: #e0b040; --c6: #ff7d90;
  --c7: #8f9cab; --c8: #566373; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
header, main, footer { max-width: 68rem; margin: 0 auto; padding: 0 1rem; }
header, main, footer { overflow-wrap: anywhere; }
header { padding-top: 2.2rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.35rem; margin: 0; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .3rem 0; }
a { color: var(--c1); }
code, pre { font: .875em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { overflow: auto; max-height: 24rem; margin: .5rem 0 0; }
.kind { color: var(--soft); font-size: .85rem; letter-spacing: .06em; text-transform: uppercase; margin: 0; }
.lead { font-size: 1.1rem; max-width: 46rem; margin: 0; }
.note, .when, .axis, footer { color: var(--soft); font-size: .875rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 1.4rem 0 0; font-size: .95rem; }
nav a { padding: .2rem 0; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 1.3rem 1.4rem 1.5rem;
  margin: 1.2rem 0; }
section > .note { max-width: 46rem; margin-bottom: 1rem; font-size: .95rem; }
footer { padding: .5rem 1rem 2.5rem; }
summary { cursor: pointer; color: var(--c1); padding: .4rem 0; font-size: .9rem; }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: 1.4rem 0 0; }
.tiles div { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: .8rem 1rem; }
.tiles dt, .tiles dd { margin: 0; color: var(--soft); font-size: .85rem; line-height: 1.4; }
.tiles .value { color: var(--text); font-size: 1.45rem; font-weight: 650; line-height: 1.3;
  font-variant-numeric: tabular-nums; }

.texts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); }
.card { border: 1px solid var(--rule); border-radius: 8px; padding: .9rem 1.1rem; min-width: 0; }
.card + .card { margin-top: 1rem; }
.texts .card + .card { margin-top: 0; }
.card h3 { margin-top: 0; }
ol { list-style: none; margin: 0; padding: 0; }
ol li { padding: .45rem 0 .5rem .9rem; border-left: 3px solid var(--rule); }
ol li:last-child { border-left-color: var(--c1); }
.prompt { color: var(--soft); }
li p { white-space: pre-wrap; }

figure { margin: 0 0 1.6rem; }
figure:last-child { margin-bottom: 0; }
figcaption { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; align-items: baseline; }
.axis { margin: .1rem 0 .3rem; font-size: .8rem; }
.axis.below { text-align: right; margin: 0; }
.plot { display: grid; grid-template: 15rem 1.4rem / 3.4rem minmax(0, 1fr); margin-top: .5rem; }
.y-ticks, .x-ticks, .area { position: relative; }
.x-ticks { grid-column: 2; }
.y-ticks span, .x-ticks span { position: absolute; color: var(--soft); font-size: .78rem; line-height: 1;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.y-ticks span { right: .5rem; transform: translateY(50%); }
.x-ticks span { top: .45rem; transform: translateX(-50%); }
.area { border-left: 1px solid var(--rule); border-bottom: 1px solid var(--rule); }
svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
svg * { vector-effect: non-scaling-stroke; fill: none; }
.grid { stroke: var(--grid); }
.line { stroke: currentColor; stroke-width: 1.8px; stroke-linejoin: round; }
.band { fill: currentColor; opacity: .18; }
.dots { stroke: currentColor; stroke-width: 8px; stroke-linecap: round; }
.mark { stroke-width: 1.5px; }
.mark.restart { stroke: var(--c6); stroke-dasharray: 5 4; }
.mark.stop { stroke: var(--c5); stroke-dasharray: 2 3; }
.mark.start { stroke: none; }
.mark.save { stroke: var(--c7); stroke-width: 2.5px; }
.mark.skip, .mark.spike, .mark.trouble { stroke: var(--c6); stroke-width: 9px; stroke-linecap: round; }
.mark.spike { stroke: var(--c5); } .mark.trouble { stroke: var(--c4); }
.c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); } .c4 { color: var(--c4); }
.c5 { color: var(--c5); } .c6 { color: var(--c6); } .c7 { color: var(--c7); } .c8 { color: var(--c8); }

.answers div { position: absolute; top: 0; bottom: 0; }
.answers div:hover { background: color-mix(in srgb, var(--soft) 16%, transparent); }
.answers span { display: none; position: absolute; left: calc(100% + .4rem); top: .4rem; z-index: 1; width: max-content;
  max-width: 15rem; background: var(--card); border: 1px solid var(--rule); border-radius: 6px; padding: .4rem .7rem;
  font-size: .82rem; line-height: 1.5; box-shadow: 0 3px 14px #0003; pointer-events: none; }
.answers span.late { left: auto; right: calc(100% + .4rem); }
.answers div:hover span { display: block; }
.answers b, .answers i { display: block; font-style: normal; font-variant-numeric: tabular-nums; }

.legend { display: inline-flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .85rem; }
.key { color: var(--text); white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .45em;
  background: currentColor; vertical-align: -.05em; }
.key.c1::before { background: var(--c1); } .key.c2::before { background: var(--c2); }
.key.c3::before { background: var(--c3); } .key.c4::before { background: var(--c4); }
.key.c5::before { background: var(--c5); } .key.c6::before { background: var(--c6); }
.key.c7::before { background: var(--c7); } .key.c8::before { background: var(--c8); }
.key.mark-restart::before, .key.mark-stop::before { width: 0; height: .9em; border-radius: 0; background: none;
  border-left: 2px dashed var(--c6); }
.key.mark-stop::before { border-left: 2px dotted var(--c5); }
.key.mark-save::before { width: 2.5px; height: .7em; border-radius: 0; background: var(--c7); }
.key.mark-skip::before, .key.mark-spike::before { border-radius: 50%; background: var(--c6); }
.key.mark-spike::before { background: var(--c5); }
.key.mark-trouble::before { border-radius: 50%; background: var(--c4); }

.bar { display: flex; height: 2rem; border-radius: 6px; overflow: hidden; margin: .4rem 0 1rem; gap: 1px; }
.bar div { background: currentColor; min-width: 2px; }
.causes, .settings { list-style: none; margin: 0; padding: 0; }
.causes, .settings { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr));
  gap: .2rem 2.2rem; }
.causes .key { white-space: normal; padding-left: 1.25em; text-indent: -1.25em; }
.causes li { display: grid; grid-template-columns: minmax(0, 1fr) auto auto; gap: 0 .9rem; align-items: baseline;
  align-content: start; padding: .4rem 0; }
.causes p { grid-column: 1 / -1; color: var(--soft); font-size: .875rem; margin: 0; }
.causes b, .causes .when { font-variant-numeric: tabular-nums; }
.settings li { display: flex; flex-wrap: wrap; gap: 0 .9rem; align-items: baseline; align-content: start;
  padding: .45rem 0; border-top: 1px solid var(--grid); min-width: 0; }
.settings b, .settings code { min-width: 0; }
.settings p { flex-basis: 100%; color: var(--soft); font-size: .875rem; margin: 0; }

.scroll { overflow-x: auto; }
table { overflow-wrap: break-word; border-collapse: collapse; font-size: .92rem; min-width: min(100%, 22rem);
  margin: .3rem 0; }
th, td { text-align: left; padding: .35rem 1.1rem .35rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
th { color: var(--soft); font-weight: 550; font-size: .85rem; }
td { font-variant-numeric: tabular-nums; }
.numbers th:not(:first-child), .numbers td:not(:first-child) { text-align: right; }
.events td:first-child { white-space: nowrap; color: var(--soft); }
.facts { display: flex; flex-wrap: wrap; gap: .6rem 2.2rem; margin: .3rem 0; }
.facts dt { color: var(--soft); font-size: .85rem; } .facts dd { margin: 0; font-variant-numeric: tabular-nums; }

.timeline { display: grid; gap: .35rem; margin-top: .7rem; }
.rank { display: grid; grid-template-columns: 8.5rem minmax(0, 1fr); align-items: center; gap: .6rem;
  font-size: .85rem; }
.lane { position: relative; height: 1.9rem; background: var(--grid); border-radius: 4px; overflow: hidden; }
.lane i { position: absolute; top: 0; bottom: 0; background: currentColor; border-right: 1px solid var(--card);
  overflow: hidden; }
.lane i::first-line { color: var(--card); }
.lane i { font-style: normal; font-size: .75rem; line-height: 1.9rem; text-align: center; }
.ends { display: flex; justify-content: space-between; margin: 0 0 0 9.1rem; color: var(--soft); font-size: .8rem; }

@media (max-width: 40rem) {
  h1 { font-size: 1.6rem; }
  section { padding: 1rem .9rem 1.2rem; border-radius: 8px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .6rem; }
  .tiles .value { font-size: 1.25rem; }
  .plot { grid-template: 12rem 1.4rem / 2.7rem minmax(0, 1fr); }
  .events td { display: block; border: 0; padding: 0; } .events td:last-child { padding-bottom: .6rem; }
  .events thead { display: none; }
  .numbers tr { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); }
  .numbers th:first-child { visibility: hidden; height: 0; padding: 0; }
  .numbers td { border: 0; padding-bottom: 0; } .numbers tbody tr { border-top: 1px solid var(--grid); }
  .numbers td:first-child, .numbers th:first-child { grid-column: 1 / -1; }
  .rank { grid-template-columns: 1fr; gap: .1rem; } .ends { margin-left: 0; }
  .answers span, .answers span.late { position: fixed; left: 1rem; right: 1rem; top: auto; bottom: 1rem;
    width: auto; max-width: none; }
}
@media print { body { background: none; } nav, .answers { display: none; } section { break-inside: avoid; } }
"""
