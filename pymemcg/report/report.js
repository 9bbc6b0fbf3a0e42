// SPDX-License-Identifier: Apache-2.0
// Fills the plots from the page's tracks: what lies in the visible time, thinned out to what the screen can show. A track has
// either rows ("t" and numbers, ascending) or intervals ("left", "right", …, those that matter most first).
"use strict";
(() => {
  const MOST_BARS = 2000; // of a colour: more are no clearer
  const byId = (id) => document.getElementById(id);
  const page = JSON.parse(byId("tracks").textContent);
  const unpacked = (column) =>
    Array.isArray(column)
      ? column
      : new Float64Array(Uint8Array.from(atob(column.float64), (c) => c.charCodeAt(0)).buffer);
  for (const track of Object.values(page.tracks)) {
    for (const name of Object.keys(track.columns)) track.columns[name] = unpacked(track.columns[name]);
  }
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const palette = () => (dark.matches ? page.palettes.dark : page.palettes.light);

  // ---- Which rows and which intervals ------------------------------------------------------------------------------

  function firstNotBefore(values, wanted) {
    let low = 0, high = values.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (values[middle] < wanted) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  // The rows in sight and one on each side; where they are more than the screen has columns, of each column the first row,
  // and for each name the least and the most.
  function rowsIn({columns}, start, end, width) {
    const t = columns.t;
    const first = Math.max(0, firstNotBefore(t, start) - 1), last = Math.min(t.length, firstNotBefore(t, end) + 1);
    const names = Object.keys(columns).filter((name) => name !== "t");
    if (last - first <= 2 * width * names.length) return Array.from({length: Math.max(0, last - first)}, (_, i) => first + i);
    const chosen = [];
    for (let from = first; from < last; ) {
      const until = t[from] + (end - start) / width;
      let to = from + 1;
      while (to < last && t[to] < until) to++;
      const kept = new Set([from]);
      for (const name of names) {
        const values = columns[name];
        let low = from, high = from;
        for (let i = from; i < to; i++) {
          if (values[i] < values[low] || Number.isNaN(values[low])) low = i;
          if (values[i] > values[high] || Number.isNaN(values[high])) high = i;
        }
        kept.add(low).add(high);
      }
      chosen.push(...[...kept].sort((a, b) => a - b));
      from = to;
    }
    if (chosen[chosen.length - 1] !== last - 1) chosen.push(last - 1);
    return chosen;
  }

  function intervalsIn({columns}, start, end) {
    const chosen = [], counts = {};
    for (let i = 0; i < columns.left.length; i++) {
      if (columns.right[i] < start || columns.left[i] > end) continue;
      const count = (counts[columns.key[i]] ?? 0) + 1;
      if (count > MOST_BARS) continue;
      counts[columns.key[i]] = count;
      chosen.push(i);
    }
    return chosen;
  }

  function fill(source, track, start, end, width) {
    const which = track.columns.t ? rowsIn(track, start, end, width) : intervalsIn(track, start, end);
    const data = {};
    for (const [name, values] of Object.entries(track.columns)) {
      data[name] = Array.isArray(values) ? which.map((i) => values[i]) : Float64Array.from(which, (i) => values[i]);
    }
    if (data.key) {
      const colours = palette();
      data.colour = data.key.map((key) => colours[key]);
      // Bands of the same colours, the fainter the more there are: what they are drawn behind must stay visible.
      const faint = Math.round(255 * Math.min(0.25, Math.max(0.03, 50 / which.length))).toString(16).padStart(2, "0");
      data.band = data.key.map((key) => colours[key] + (key === "harmless" ? "00" : faint));
    }
    source.data = data;
  }

  // ---- What is in sight, in words ------------------------------------------------------------------------------------

  const clock = (ms) => new Date(ms).toISOString().slice(11, 23);
  function lasting(ms) {
    if (ms < 1000) return `${ms.toPrecision(3)} ms`;
    if (ms < 60e3) return `${(ms / 1000).toPrecision(3)} s`;
    const minutes = Math.floor(ms / 60e3);
    return minutes < 60 ? `${minutes} min ${Math.round((ms % 60e3) / 1000)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  }
  function tell(start, end) {
    start = Math.max(start, page.begin);
    end = Math.min(end, page.end);
    const usage = page.tracks.usage;
    let detail = "";
    if (usage) {
      const whole = usage.block === 1 || usage.whole.some(([a, b]) => a <= start && end <= b);
      detail = whole
        ? "of usage, every row that was recorded in this time"
        : `of usage, the least and the most of every ${usage.block} rows, and all rows around stalls and spikes`;
    }
    byId("sight").textContent = `${clock(start)} to ${clock(end)} UTC, ${lasting(end - start)}; ${detail}`;
  }

  // ---- Colours ---------------------------------------------------------------------------------------------------------

  function paint() {
    const colours = palette();
    for (const plot of doc.roots()[0].children.map(([plot]) => plot)) {
      plot.setv({background_fill_color: null, border_fill_color: null, outline_line_color: colours.grid});
      for (const part of [...plot.left, ...plot.below]) {
        part.setv({
          axis_label_text_color: colours.text, major_label_text_color: colours.text, axis_line_color: colours.grid,
          major_tick_line_color: colours.grid, minor_tick_line_color: null,
        });
      }
      for (const part of plot.center) if (part.grid_line_color) part.grid_line_color = colours.grid;
      for (const part of plot.above) if (part.items) part.label_text_color = colours.text;
      plot.title.text_color = colours.text;
      for (const {glyph} of plot.renderers) {
        const colour = colours[glyph.tags[0]];
        if (!colour) continue;
        if (glyph.fill_color) glyph.fill_color = {value: colour};
        if (glyph.line_color) glyph.line_color = glyph.line_color.value === undefined ? colour : {value: colour};
      }
    }
  }

  // ---- All of it -------------------------------------------------------------------------------------------------------

  const doc = Bokeh.require("document").Document.from_json(JSON.parse(byId("bokeh").textContent).doc);
  const time = doc.get_model_by_name("time");
  const sources = Object.entries(page.tracks).map(([name, track]) => [doc.get_model_by_name(name), track]);

  function show() {
    const width = Math.max(300, byId("plots").clientWidth - 140);
    for (const [source, track] of sources) fill(source, track, time.start, time.end, width);
    tell(time.start, time.end);
  }
  let asked = false;
  function soon() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      show();
    });
  }
  time.properties.start.change.connect(soon);
  time.properties.end.change.connect(soon);
  dark.addEventListener("change", () => {
    paint();
    show();
  });
  // The wheel scrolls the page; with Ctrl it zooms.
  byId("plots").addEventListener("wheel", (event) => event.ctrlKey || event.stopPropagation(), {capture: true});
  byId("whole").addEventListener("click", () => time.setv({start: time.bounds[0], end: time.bounds[1]}));
  for (const row of document.querySelectorAll("tr[data-from]")) {
    row.addEventListener("click", () => {
      const from = Number(row.dataset.from), to = Number(row.dataset.to);
      const room = Math.max(to - from, 1);
      time.setv({start: from - room, end: to + room});
      byId("plots").scrollIntoView({behavior: "smooth"});
    });
  }

  document.documentElement.classList.add("scripted");
  paint();
  show();
  Bokeh.embed.add_document_standalone(doc, byId("plots"));
})();
