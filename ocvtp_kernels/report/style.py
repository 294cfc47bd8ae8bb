"""The report page's style sheet, light and dark; its variables colour the pictures too."""

CSS = """
:root { color-scheme: light dark; --paper: #fbfbf9; --card: #fff; --ink: #1b1d22; --soft: #5d636e;
  --grid: #dcdee2; --loss: #c22f1f; --s0: #d9480f; --s1: #3b6fb6; --s2: #0f8b7d; --s3: #8a5bb5;
  --s4: #a8791a; --s5: #c2417e; --s6: #4f7a28; --s7: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161a; --card: #1b1e24; --ink: #ecece8;
  --soft: #a4a9b3; --grid: #3a3f49; --loss: #ff8070; --s0: #ff8a4c; --s1: #7fb0f5; --s2: #4fd0bd;
  --s3: #c39bef; --s4: #e3b452; --s5: #f58ab8; --s6: #9ccc65; --s7: #9aa1ad; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 2rem 1rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .25rem; padding-top: 1rem;
  border-top: 2px solid var(--ink); }
h3 { font-size: 1.1rem; margin: 2.2rem 0 .4rem; }
h4 { font-size: .95rem; margin: 1.4rem 0 .5rem; }
p, ul, ol { margin: .4rem 0 .8rem; max-width: 46rem; }
a { color: inherit; }
.soft, figcaption, .tile span { color: var(--soft); font-size: .875rem; }
.tiles { display: grid; gap: .75rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
.tile, figure { background: var(--card); border: 1px solid var(--grid); border-radius: .6rem; }
.tile { padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.3; }
.tile.ours b { color: var(--s0); }
.tile.lost b { color: var(--loss); }
.pictures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; padding: .9rem; }
figure svg { display: block; width: 100%; height: auto; max-width: 34rem;
  margin: 0 auto .5rem; overflow: visible; }
figure svg text { font-family: inherit !important; }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem;
  font-size: .9rem; }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 50%;
  margin-right: .4em; }
.losses li::marker { color: var(--loss); font-weight: 600; }
.scroll { overflow-x: auto; margin-top: 1rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--grid);
  vertical-align: top; white-space: nowrap; }
td.wide { white-space: normal; min-width: 16rem; }
summary { cursor: pointer; margin-top: 1.4rem; font-weight: 600; }
""".strip()
