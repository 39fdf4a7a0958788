"""The look of a report: light, dark, narrow and printed."""

from __future__ import annotations

# Background and ink of the page and of the figures drawn for it.
LIGHT = ("#ffffff", "#1f2328")
DARK = ("#15181d", "#e3e6ea")

_COLOURS = f"""
:root {{
  --paper: {LIGHT[0]}; --ink: {LIGHT[1]}; --soft: #5b636d; --line: #d9dde2;
  --tint: #f4f6f8; --accent: #0072b2;
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --paper: {DARK[0]}; --ink: {DARK[1]}; --soft: #9aa3ad; --line: #343a42;
    --tint: #1d2128; --accent: #6cb6e8;
  }}
}}
"""

STYLE = (
    _COLOURS
    + """* { box-sizing: border-box; }
html { font-size: 106.25%; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  line-height: 1.6; text-rendering: optimizeLegibility;
}
main { max-width: 50rem; margin: 0 auto; padding: 3.2rem 1.25rem 5rem; }
p { max-width: 42rem; margin: 0 0 1em; hyphens: auto; }
h1 { font-size: 2.1rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 1.2rem;
  text-wrap: balance; }
h2 { font-size: 1.3rem; line-height: 1.3; letter-spacing: -0.005em; margin: 3rem 0 0.8rem; }
.summary { font-size: 1.12rem; line-height: 1.55; color: var(--soft); }
nav { margin: 1.6rem 0 0; font-size: 0.9rem; }
nav ol { margin: 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap;
  gap: 0.25rem 1.4rem; }
a { color: var(--accent); text-underline-offset: 0.18em;
  text-decoration-color: color-mix(in srgb, currentcolor 35%, transparent); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr));
  gap: 1rem 1.5rem; margin: 2rem 0; padding: 1.1rem 0; border: solid var(--line);
  border-width: 1px 0; }
.facts div { display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.facts dt { font-size: 0.82rem; line-height: 1.35; color: var(--soft); }
.facts dd { margin: 0; font-size: 1.6rem; line-height: 1.25; font-weight: 600;
  font-variant-numeric: tabular-nums; }
figure { margin: 2rem 0; }
h2 + figure, h2 + .facts { margin-top: 1.2rem; }
figure img { display: block; max-width: 100%; height: auto; }
figure.card img { background: #fff; border-radius: 6px; }
figcaption { max-width: 42rem; margin-top: 0.7rem; font-size: 0.86rem; line-height: 1.5;
  color: var(--soft); }
figcaption b { color: var(--ink); font-weight: 600; }
figure.table figcaption { margin: 0 0 0.7rem; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: separate; border-spacing: 0;
  font-size: 0.88rem; line-height: 1.35;
  font-variant-numeric: tabular-nums lining-nums; border-bottom: 1.5px solid var(--ink); }
th, td { padding: 0.5rem 0.7rem; text-align: left; vertical-align: baseline; font-weight: 400; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
thead th { font-weight: 600; vertical-align: bottom; border: solid var(--ink);
  border-width: 1.5px 0 1px; min-width: 4.6rem; }
thead small { display: block; font-size: 0.82em; font-weight: 400; color: var(--soft); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody tr:hover > * { background: var(--tint); }
tbody th { position: sticky; left: 0; background: var(--paper); }
table.wide { font-size: 0.8rem; }
table.wide th, table.wide td { padding-inline: 0.28rem; min-width: 0; }
table.wide th:first-child { padding-left: 0; }
.number { text-align: right; }
td { white-space: nowrap; }
strong { font-weight: 700; color: var(--accent); }
@media (max-width: 34rem) {
  html { font-size: 100%; }
  main { padding-top: 1.8rem; }
  h1 { font-size: 1.65rem; }
  .facts { grid-template-columns: 1fr 1fr; }
}
@media print {
  :root { --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --tint: #fff;
    --accent: #000; }
  html { font-size: 80%; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  h2 { break-after: avoid; }
  figure { break-inside: avoid; }
  figure img { max-height: 10cm; }
  .scroll { overflow: visible; }
}
"""
)
