// The three plots. Each reads its colours from the style sheet, so that light and dark follow it.

const BUCKETS = 100;
const BINS = 48;
// More nodes on a side of a drawing than this go without their numbers.
const LABELLED = 28;
const CONFIG = {
  displaylogo: false,
  modeBarButtons: [["toImage"]],
  toImageButtonOptions: { format: "svg" },
};
const COUNT = new Intl.NumberFormat("en-US");

function count(n) {
  return COUNT.format(n);
}

/** Four significant digits, plain where that is short. */
function significant(x) {
  if (x === 0) return "0";
  const size = Math.abs(x);
  return size >= 1e-3 && size < 1e6 ? String(Number(x.toPrecision(4))) : x.toExponential(3);
}

function percent(share, digits = 1) {
  return `${(100 * share).toFixed(digits)} %`;
}

function palette() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    ink: colour("ink"),
    muted: colour("muted"),
    rule: colour("rule"),
    panel: colour("panel"),
    kept: colour("kept"),
    removed: colour("removed"),
    veil: colour("veil"),
    cut: colour("cut"),
    font: style.getPropertyValue("--text").trim(),
  };
}

function layout(colours, div, own) {
  const axis = {
    fixedrange: true,
    zeroline: false,
    gridcolor: colours.rule,
    linecolor: colours.rule,
    tickcolor: colours.rule,
    ticks: "outside",
    ticklen: 3,
  };
  const { xaxis, yaxis, ...rest } = own;
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: colours.font, size: 11, color: colours.muted },
    hoverlabel: {
      bgcolor: colours.panel,
      bordercolor: colours.rule,
      font: { family: colours.font, size: 12, color: colours.ink },
      align: "left",
    },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colours.rule, activecolor: colours.ink },
    showlegend: false,
    width: div.clientWidth,
    dragmode: false,
    xaxis: { ...axis, ...xaxis },
    yaxis: { ...axis, ...yaxis },
    ...rest,
  };
}

/** Ticks of a log10 axis at 1, 2, 5 of every decade, or at whole decades where those would crowd. */
function logTicks(low, high) {
  const dense = high - low < 2.2;
  const values = [];
  for (let decade = Math.floor(low); decade <= Math.ceil(high); decade += high - low > 8 ? 2 : 1) {
    for (const step of dense ? [1, 2, 5] : [1]) values.push(decade + Math.log10(step));
  }
  const shown = values.filter((value) => value >= low - 1e-9 && value <= high + 1e-9);
  return { tickmode: "array", tickvals: shown, ticktext: shown.map((value) => significant(10 ** value)) };
}

/** Plot texts are a small HTML of their own: names must not be read as that. */
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

// --- all layers

const overviewRows = new WeakMap();

/** log10 of the mean score of every bucket of neurons, highest first, relative to the layer's mean. */
function heat(model, scorer) {
  if (overviewRows.has(scorer)) return overviewRows.get(scorer);
  const rows = model.layers.map((layer) => {
    const order = model.order(scorer, layer);
    return Array.from({ length: BUCKETS }, (_, bucket) => {
      const first = Math.min(Math.floor((bucket * layer.size) / BUCKETS), layer.size - 1);
      const last = Math.max(Math.floor(((bucket + 1) * layer.size) / BUCKETS), first + 1);
      let sum = 0;
      for (let k = first; k < last; k += 1) sum += model.relative(scorer, layer, order[k]);
      return sum > 0 ? Math.log10(sum / (last - first)) : null;
    });
  });
  const values = rows.flat().filter((value) => value !== null);
  values.sort((a, b) => a - b);
  // One outlier must not take the whole scale.
  const at = (share) => values[Math.round(share * (values.length - 1))] ?? 0;
  let [low, high] = [at(0.002), at(0.998)];
  if (high - low < 0.05) [low, high] = [low - 0.05, high + 0.05];
  const entry = { rows, low, high };
  overviewRows.set(scorer, entry);
  return entry;
}

function steps(model, counts) {
  const x = [];
  const y = [];
  for (const { number, size } of model.layers) {
    const kept = 100 * (1 - counts[number] / size);
    x.push(kept, kept);
    y.push(number - 0.5, number + 0.5);
  }
  return { x, y };
}

function drawOverview(div, model, scorer, plans, state) {
  const colours = palette();
  const { rows, low, high } = heat(model, scorer);
  const layers = model.layers.length;
  const narrow = div.clientWidth < 460;
  const chosen = steps(model, plans[state.budget].counts);
  const other = steps(model, plans[state.budget === "local" ? "global" : "local"].counts);
  const wide = { x: [...chosen.x, 100, 100], y: [...chosen.y, layers - 0.5, -0.5] };
  const line = { type: "scatter", mode: "lines", hoverinfo: "skip" };
  const x = Array.from({ length: BUCKETS }, (_, bucket) => bucket + 0.5);
  const traces = [
    {
      type: "heatmap",
      z: rows,
      x,
      y: model.layers.map((layer) => layer.number),
      zmin: low,
      zmax: high,
      colorscale: "Cividis",
      colorbar: {
        orientation: "h",
        thickness: 8,
        len: narrow ? 0.8 : 0.5,
        x: 0,
        xanchor: "left",
        y: 1,
        yref: "container",
        yanchor: "top",
        ypad: 0,
        outlinewidth: 0,
        title: { text: "mean score of the bucket, × mean of the layer", side: "top", font: { size: 11 } },
        ...logTicks(low, high),
      },
      customdata: rows.map((row) => row.map((value) => (value === null ? "0" : significant(10 ** value)))),
      hovertemplate: "layer %{y}<br>neurons at %{x:.1f} % of the order<br>score %{customdata} × mean<extra></extra>",
    },
    { ...line, ...wide, fill: "toself", fillcolor: colours.veil, line: { width: 0 } },
    { ...line, ...other, line: { color: colours.cut, width: 1.2, dash: "dot" } },
    { ...line, ...chosen, line: { color: colours.cut, width: 2 } },
  ];
  if (!narrow) {
    traces.push({
      type: "bar",
      orientation: "h",
      xaxis: "x2",
      y: model.layers.map((layer) => layer.number),
      x: model.layers.map((layer) => (100 * scorer.effective[layer.number]) / layer.size),
      marker: { color: colours.muted },
      customdata: model.layers.map((layer) => count(Math.round(scorer.effective[layer.number]))),
      hovertemplate: "layer %{y}<br>as concentrated as %{customdata} equal neurons (%{x:.1f} %)<extra></extra>",
    });
  }
  const open = state.layer.number;
  const own = layout(colours, div, {
    height: 106 + Math.max(160, layers * (layers > 48 ? 9 : 13)),
    margin: { l: 40, r: 8, t: 58, b: 40 },
    bargap: 0.35,
    xaxis: {
      domain: [0, narrow ? 1 : 0.77],
      range: [0, 100],
      showgrid: false,
      title: { text: "neurons of the layer, highest score first (%)", standoff: 6 },
    },
    yaxis: {
      range: [layers - 0.5, -0.5],
      showgrid: false,
      tickformat: "d",
      dtick: Math.max(1, Math.ceil(layers / 16)),
      title: { text: "layer", standoff: 4 },
    },
    shapes: [
      {
        type: "rect",
        x0: 0,
        x1: 100,
        y0: open - 0.5,
        y1: open + 0.5,
        line: { color: colours.ink, width: 1.5 },
      },
    ],
  });
  if (!narrow) {
    own.xaxis2 = {
      ...own.xaxis,
      domain: [0.82, 1],
      range: [0, 105],
      showgrid: true,
      title: { text: "effective (%)", standoff: 6 },
      dtick: 50,
    };
  }
  Plotly.react(div, traces, own, CONFIG);
}

// --- one layer: its scores

/** Returns how many scores of zero a logarithmic axis leaves out. */
function drawDistribution(div, model, scorer, plans, state) {
  const colours = palette();
  const { layer } = state;
  const plan = plans[state.budget];
  const logs = [];
  let zeros = 0;
  for (let neuron = 0; neuron < layer.size; neuron += 1) {
    const value = model.relative(scorer, layer, neuron);
    logs.push(value > 0 ? Math.log10(value) : null);
    if (value <= 0) zeros += 1;
  }
  const present = logs.filter((value) => value !== null);
  let low = present.reduce((a, b) => Math.min(a, b), present.length ? Infinity : 0);
  let high = present.reduce((a, b) => Math.max(a, b), present.length ? -Infinity : 0);
  if (high - low < 0.02) [low, high] = [low - 0.5, high + 0.5];
  const width = (high - low) / BINS;
  const kept = new Array(BINS).fill(0);
  const removed = new Array(BINS).fill(0);
  logs.forEach((value, neuron) => {
    if (value === null) return;
    const bin = Math.min(Math.floor((value - low) / width), BINS - 1);
    (plan.removes(layer, neuron) ? removed : kept)[bin] += 1;
  });
  const centres = Array.from({ length: BINS }, (_, bin) => low + (bin + 0.5) * width);
  const spans = centres.map((c) => `${significant(10 ** (c - width / 2))} – ${significant(10 ** (c + width / 2))}`);
  const bar = (name, y, color, pattern) => ({
    type: "bar",
    name,
    x: centres,
    y,
    width,
    customdata: spans,
    marker: { color, line: { width: 0.5, color: colours.panel }, pattern },
    hovertemplate: `%{y} ${name}<br>score %{customdata} × mean<extra></extra>`,
  });
  // Kept and removed differ by pattern too: colour alone does not reach everyone.
  const hatch = { shape: "/", size: 5, solidity: 0.3, bgcolor: colours.removed, fgcolor: colours.panel };
  const shapes = [];
  const annotations = [];
  ["local", "global"].forEach((budget, row) => {
    const { removed: below, kept: above } = cut(model, scorer, layer, plans[budget]);
    if (below === null || above === null || above <= 0) return;
    const at = Math.log10(layer.size * (below > 0 ? Math.sqrt(below * above) : above));
    const x = Math.min(Math.max(at, low), high);
    const chosen = budget === state.budget;
    const line = { color: colours.ink, width: chosen ? 2 : 1.2, dash: chosen ? "solid" : "dot" };
    shapes.push({ type: "line", x0: x, x1: x, y0: 0, y1: 1.02 + row * 0.09, yref: "paper", line });
    annotations.push({
      x,
      y: 1.02 + row * 0.09,
      yref: "paper",
      yanchor: "bottom",
      xanchor: x > (low + high) / 2 ? "right" : "left",
      showarrow: false,
      text: `${budget} cut`,
      font: { size: 11, color: chosen ? colours.ink : colours.muted },
    });
  });
  const own = layout(colours, div, {
    height: 340,
    margin: { l: 44, r: 10, t: 46, b: 40 },
    barmode: "stack",
    bargap: 0,
    shapes,
    annotations,
    xaxis: {
      range: [low, high],
      showgrid: false,
      title: { text: "score, × mean of the layer", standoff: 6 },
      ...logTicks(low, high),
    },
    yaxis: { title: { text: "neurons", standoff: 6 }, rangemode: "tozero", tickformat: ",d" },
  });
  const traces = [bar("removed", removed, colours.removed, hatch), bar("kept", kept, colours.kept, undefined)];
  Plotly.react(div, traces, own, CONFIG);
  return zeros;
}

// --- one layer: its strongest part

/** The highest neurons (and the one looked at) with their strongest edges, and the shares that are shown. */
function strongestPart(model, scorer, layer, size, neuron) {
  const highest = Array.from(model.order(scorer, layer).subarray(0, size));
  const shown = neuron === null || highest.includes(neuron) ? highest : [...highest, neuron];
  const edges = { in: [], out: [] };
  let known = 0;
  for (const target of shown) {
    if (model.edges.of(layer, target, "in") === null) continue;
    known += 1;
    for (const side of ["in", "out"]) {
      edges[side].push(...model.edges.of(layer, target, side).map((edge) => ({ ...edge, neuron: target })));
    }
  }
  const held = highest.reduce((sum, k) => sum + scorer.scores[layer.start + k], 0);
  const carried = (side) => edges[side].reduce((sum, { share }) => sum + share, 0) / Math.max(known, 1);
  return { shown, highest, edges, held, carriedIn: carried("in"), carriedOut: carried("out"), unknown: shown.length - known };
}

/** Places of the nodes of one side: in the order of what they are tied to, which leaves few crossings. */
function column(edges, rowOf) {
  const ties = new Map();
  for (const { node, neuron, share } of edges) {
    const tie = ties.get(node) ?? { node, sum: 0, weight: 0 };
    tie.sum += share * rowOf.get(neuron);
    tie.weight += share;
    ties.set(node, tie);
  }
  return [...ties.values()].sort((a, b) => a.sum / a.weight - b.sum / b.weight || a.node - b.node);
}

/** A name without the parts that all layers begin with. */
function brief(model, name) {
  const [first, ...others] = model.layers.map((layer) => layer.name.split("."));
  let same = 0;
  while (others.length && same < first.length - 1 && others.every((parts) => parts[same] === first[same])) same += 1;
  const prefix = first.slice(0, same).map((part) => `${part}.`).join("");
  return name.startsWith(prefix) ? name.slice(prefix.length) : name;
}

function spread(k, n) {
  return n === 1 ? 0.5 : 1 - k / (n - 1);
}

function drawSubgraph(div, model, scorer, plans, state, part) {
  const colours = palette();
  const { layer } = state;
  const plan = plans[state.budget];
  const narrow = div.clientWidth < 380;
  const rowOf = new Map(part.shown.map((neuron, row) => [neuron, row]));
  const yOf = new Map(part.shown.map((neuron, row) => [neuron, spread(row, part.shown.length)]));
  const traces = [];
  const lines = [1, 2, 3, 4].map(() => ({ x: [], y: [] }));
  const middles = { x: [], y: [], text: [] };
  const others = [];
  const nodes = [];
  ["in", "out"].forEach((side, k) => {
    const ends = column(part.edges[side], rowOf);
    const x = k === 0 ? 0 : 2;
    const places = new Map(ends.map(({ node }, row) => [node, spread(row, ends.length)]));
    const heaviest = part.edges[side].reduce((most, { share }) => Math.max(most, share), 0);
    const at = layer[side];
    for (const { node, neuron, share } of part.edges[side]) {
      const line = lines[Math.min(Math.floor((4 * share) / heaviest), 3)];
      const [y0, y1] = [places.get(node), yOf.get(neuron)];
      line.x.push(x, 1, null);
      line.y.push(y0, y1, null);
      middles.x.push(x + 0.38 * (1 - x));
      middles.y.push(y0 + 0.38 * (y1 - y0));
      middles.text.push(
        side === "in"
          ? `node ${node} → neuron ${neuron}<br>${percent(share, 2)} of what arrives`
          : `neuron ${neuron} → node ${node}<br>${percent(share, 2)} of what leaves`,
      );
    }
    if (!at) return;
    const names = ends.map(({ node }) => String(node));
    nodes.push({
      type: "scatter",
      mode: ends.length > LABELLED ? "markers" : "markers+text",
      x: ends.map(() => x),
      y: ends.map(({ node }) => places.get(node)),
      text: names,
      textposition: k === 0 ? "middle left" : "middle right",
      textfont: { size: 10, color: colours.muted },
      marker: { size: 6, color: colours.muted },
      hovertext: ends.map(({ node }) => `node ${node} of ${plain(at.name)}`),
      hoverinfo: "text",
    });
    others.push({ x, number: at.size - ends.length });
  });
  lines.forEach(({ x, y }, k) => {
    if (!x.length) return;
    const line = { color: colours.ink, width: 0.6 + 0.7 * k };
    traces.push({ type: "scatter", mode: "lines", x, y, line, opacity: 0.25 + 0.17 * k, hoverinfo: "skip" });
  });
  traces.push({
    type: "scatter",
    mode: "markers",
    ...middles,
    hoverinfo: "text",
    marker: { size: 9, color: "rgba(0,0,0,0)" },
  });
  traces.push(...nodes);
  const highest = model.relative(scorer, layer, part.highest[0]) || 1;
  const goes = part.shown.map((neuron) => plan.removes(layer, neuron));
  traces.push({
    type: "scatter",
    mode: "markers+text",
    x: part.shown.map(() => 1),
    y: part.shown.map((neuron) => yOf.get(neuron)),
    text: part.shown.map(String),
    textposition: "top center",
    textfont: { size: 10, color: colours.ink },
    customdata: part.shown,
    hovertext: part.shown.map((neuron, row) => {
      const score = significant(model.relative(scorer, layer, neuron));
      return `neuron ${neuron}: score ${score} × mean, ${goes[row] ? "removed" : "kept"}`;
    }),
    hoverinfo: "text",
    marker: {
      size: part.shown.map((neuron) => 7 + 11 * Math.sqrt(model.relative(scorer, layer, neuron) / highest)),
      opacity: 1,
      color: goes.map((gone) => (gone ? colours.removed : colours.kept)),
      symbol: goes.map((gone) => (gone ? "diamond" : "circle")),
      line: {
        color: part.shown.map((neuron) => (neuron === state.neuron ? colours.ink : colours.panel)),
        width: part.shown.map((neuron) => (neuron === state.neuron ? 2.5 : 1)),
      },
    },
  });
  others.push({ x: 1, number: layer.size - part.shown.length });
  // What is not drawn is there all the same: one node a layer stands for the others.
  const rest = others.filter(({ number }) => number > 0);
  traces.push({
    type: "scatter",
    mode: "markers+text",
    x: rest.map(({ x }) => x),
    y: rest.map(() => -0.17),
    text: rest.map(({ number }) => `${count(number)} others`),
    textposition: "bottom center",
    textfont: { size: 10, color: colours.muted },
    hoverinfo: "skip",
    marker: { size: 9, symbol: "square-open", color: colours.muted },
  });
  const short = (name) => plain(name.length > 18 ? `…${name.slice(-17)}` : name);
  const headings = [
    { x: 0, text: layer.in ? short(brief(model, layer.in.name)) : "" },
    { x: 2, text: layer.out ? short(brief(model, layer.out.name)) : "" },
  ];
  // Room for the labels: over the neurons, and beside the nodes while those have some.
  const ends = Math.max(...nodes.map((trace) => trace.x.length), 0);
  const room = Math.max(31 * (part.shown.length - 1), (ends > LABELLED ? 7 : 12) * (ends - 1));
  const own = layout(colours, div, {
    height: Math.max(340, Math.round(36 + 1.47 * room)),
    margin: { l: 6, r: 6, t: 30, b: 6 },
    hovermode: "closest",
    xaxis: { range: narrow ? [-0.55, 2.55] : [-0.4, 2.4], visible: false },
    yaxis: { range: [-0.34, 1.13], visible: false },
    annotations: headings.map(({ x, text }, k) => ({
      x,
      y: 1.02,
      yref: "paper",
      yanchor: "bottom",
      xanchor: k === 0 ? "left" : "right",
      xshift: (k === 0 ? -1 : 1) * (narrow ? 30 : 40),
      showarrow: false,
      text,
      font: { size: 11, color: colours.muted },
    })),
  });
  Plotly.react(div, traces, own, CONFIG);
}
