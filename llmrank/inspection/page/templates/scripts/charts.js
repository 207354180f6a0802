// The three charts: the scores of all layers, the scores of one layer, and the strongest part of its graph.

const BUCKETS = 100;
const BINS = 48;
// If a side of the graph has more nodes than this, they are drawn without their numbers.
const MAX_LABELLED = 28;

// --- all layers

const heatMaps = new WeakMap();

/** The heat map of a scorer: log10 of the mean score of each bucket of neurons, relative to the mean of the layer. */
function heatMap(model, scorer) {
  if (heatMaps.has(scorer)) return heatMaps.get(scorer);
  const rows = model.layers.map((layer) => {
    const order = model.order(scorer, layer);
    return Array.from({ length: BUCKETS }, (_, bucket) => {
      const first = Math.min(Math.floor((bucket * layer.size) / BUCKETS), layer.size - 1);
      const end = Math.max(Math.floor(((bucket + 1) * layer.size) / BUCKETS), first + 1);
      let sum = 0;
      for (let k = first; k < end; k += 1) sum += model.relativeScore(scorer, layer, order[k]);
      return sum > 0 ? Math.log10(sum / (end - first)) : null;
    });
  });
  const values = rows.flat().filter((value) => value !== null);
  values.sort((a, b) => a - b);
  // The colours do not reach to the extremes: else one outlier would leave a single colour to all other scores.
  const quantile = (share) => values[Math.round(share * (values.length - 1))] ?? 0;
  let [low, high] = [quantile(0.002), quantile(0.998)];
  if (high - low < 0.05) [low, high] = [low - 0.05, high + 0.05];
  const image = heatImage(rows.map((row) => row.map((value) => (value === null ? null : (value - low) / (high - low)))));
  const map = { rows, low, high, image };
  heatMaps.set(scorer, map);
  return map;
}

/** A bar of the heat map's colours, and the scores that they mean. */
function colourBar(x, width, low, high) {
  const stops = COLOUR_MAP.map((colour, k) => svg("stop", { offset: k / (COLOUR_MAP.length - 1), "stop-color": colour }));
  const place = scale([low, high], [x, x + width]);
  return svg(
    "g",
    {},
    svg("linearGradient", { id: "heat-colours" }, ...stops),
    text(x, 10, "mean score of the bucket, × mean of the layer"),
    rect(x, 16, width, 8, { fill: "url(#heat-colours)" }),
    ...logTicks(low, high).map(({ value, label }) => text(place(value), 36, label, { class: "tick", "text-anchor": "middle" })),
  );
}

function drawOverview(box, model, scorer, plans, state) {
  const { rows, low, high, image } = heatMap(model, scorer);
  const layers = model.layers.length;
  const narrow = box.clientWidth < 460;
  const [left, top, inner] = [40, 46, box.clientWidth - 52];
  const bottom = top + Math.max(160, layers * (layers > 48 ? 9 : 13));
  const x = scale([0, 100], [left, left + inner * (narrow ? 1 : 0.77)]);
  const y = scale([-0.5, layers - 0.5], [top, bottom]);
  const rowHeight = y(1) - y(0);
  const cut = (counts) =>
    model.layers.flatMap(({ number, size }) => {
      const kept = x(100 * (1 - counts[number] / size));
      return [
        [kept, y(number - 0.5)],
        [kept, y(number + 0.5)],
      ];
    });
  const chosen = cut(plans[state.budget].counts);
  const other = cut(plans[state.budget === "local" ? "global" : "local"].counts);
  const step = Math.max(1, Math.ceil(layers / 16));
  const layerTicks = model.layers.filter(({ number }) => number % step === 0);
  const percentTicks = [0, 20, 40, 60, 80, 100].map((value) => ({ value, label: String(value) }));
  const tips = model.layers.map(({ number }) =>
    rect(x(0), y(number - 0.5), x(100) - x(0), rowHeight, {
      class: "target",
      "data-layer": number,
      tip: (share) => {
        const bucket = Math.min(Math.floor(share * BUCKETS), BUCKETS - 1);
        const value = rows[number][bucket];
        const score = value === null ? "0" : significant(10 ** value);
        return `layer ${number}\nneurons at ${bucket} % to ${bucket + 1} % of the order\nmean score ${score} × mean of the layer`;
      },
    }),
  );
  const parts = [
    colourBar(left, inner * (narrow ? 0.8 : 0.5), low, high),
    svg("image", { href: image, x: x(0), y: top, width: x(100) - x(0), height: bottom - top, preserveAspectRatio: "none", class: "heat" }),
    path([...chosen, [x(100), bottom], [x(100), top]], { class: "veil" }),
    // A wider line under each cut makes it visible on dark and on light colours.
    path(other, { class: "cut under" }),
    path(other, { class: "cut other" }),
    path(chosen, { class: "cut under" }),
    path(chosen, { class: "cut" }),
    rect(x(0), y(state.layer.number - 0.5), x(100) - x(0), rowHeight, { class: "open-layer" }),
    bottomAxis(x, bottom, percentTicks, "neurons of the layer, highest score first (%)", (x(0) + x(100)) / 2),
    leftAxis(left, y, layerTicks.map(({ number }) => ({ value: number, label: String(number) })), "layer", (top + bottom) / 2),
    ...tips,
  ];
  if (!narrow) parts.push(effectiveBars(model, scorer, [left + inner * 0.82, left + inner], y, bottom));
  showChart(box, bottom + 40, ...parts);
}

// --- all experts

/** [[expert, value or null], ...] of the routed experts of every mixture, for a heat map: their tokens, or scores × mean. */
function expertValues(model, scorer, measure) {
  return model.mixtures.map((layer) => {
    const experts = layer.experts.filter(({ routed }) => routed);
    if (measure === "tokens") return experts.map((expert) => [expert, expert.tokens]);
    const scores = experts.map((expert) => model.expertScore(scorer, layer, expert));
    const mean = scores.reduce((sum, score) => sum + score, 0) / scores.length || 1;
    return experts.map((expert, k) => [expert, scores[k] / mean]);
  });
}

/** Draw a row for each mixture and a cell for each routed expert, with crosses on those that are removed; return their numbers. */
function drawExperts(box, model, scorer, plans, state, measure) {
  const rows = expertValues(model, scorer, measure);
  const columns = Math.max(...rows.map((row) => row.length));
  const sorted = rows.flatMap((row) => row.map(([, value]) => value)).sort((a, b) => a - b);
  // As in the other heat map, a few values far above the others do not set the scale.
  const high = sorted[Math.round(0.99 * (sorted.length - 1))] || 1;
  const [left, right, top] = [40, box.clientWidth - 12, 46];
  const bottom = top + Math.max(60, rows.length * (rows.length > 48 ? 9 : 14));
  const x = scale([0, columns], [left, right]);
  const y = scale([-0.5, rows.length - 0.5], [top, bottom]);
  const shares = rows.map((row) => Array.from({ length: columns }, (_, k) => (row[k] ? row[k][1] / high : null)));
  const crosses = [];
  let removed = 0;
  const plan = plans[state.budget];
  const tips = rows.map((row, r) => {
    const layer = model.mixtures[r];
    row.forEach(([{ start, size }], k) => {
      if (model.countRemoved(plan, layer, start, size) < size) return;
      removed += 1;
      const [x1, x2, y1, y2] = [x(k) + 1, x(k + 1) - 1, y(r - 0.5) + 1, y(r + 0.5) - 1];
      crosses.push(`M${x1},${y1}L${x2},${y2}M${x1},${y2}L${x2},${y1}`);
    });
    return rect(left, y(r - 0.5), x(row.length) - left, y(r + 0.5) - y(r - 0.5), {
      class: "target",
      "data-layer": layer.number,
      "data-experts": row.length,
      tip: (share) => {
        const [expert, value] = row[Math.min(Math.floor(share * row.length), row.length - 1)];
        const gone = model.countRemoved(plan, layer, expert.start, expert.size);
        const fate = gone === expert.size ? "removed" : `${count(expert.size - gone)} of ${plural(expert.size, "neuron")} kept`;
        const use = expert.tokens ? `\n${percent(expert.tokens)} of the tokens` : "\ndead: no token";
        const score = measure === "tokens" ? "" : `\nscore ${significant(value)} × mean of the ${model.part}s`;
        return `layer ${layer.number}, ${model.part} ${expert.label}${model.hasHeads ? "" : use}${score}\n${fate}`;
      },
    });
  });
  const step = Math.max(1, Math.ceil(rows.length / 16));
  const layerTicks = model.mixtures.flatMap(({ number }, r) => (r % step ? [] : [{ value: r, label: String(number) }]));
  const expertTicks = wholeTicks(columns - 1, 10).map(({ value, label }) => ({ value: value + 0.5, label }));
  const place = scale([0, high], [left, left + 0.5 * (right - left)]);
  const title = measure === "tokens" ? "share of the tokens that the expert gets" : `score of the ${model.part}, × mean of its ${model.hasHeads ? "attention" : "mixture"}`;
  const words = (value) => (measure === "tokens" ? `${Number((100 * value).toPrecision(2))} %` : significant(Number(value.toPrecision(2))));
  const open = model.mixtures.indexOf(state.layer);
  showChart(
    box,
    bottom + 40,
    text(left, 10, title),
    rect(left, 16, place(high) - left, 8, { fill: "url(#heat-colours)" }),
    ...[0, high / 2, high].map((value) => text(place(value), 36, words(value), { class: "tick", "text-anchor": "middle" })),
    svg("image", { href: heatImage(shares), x: left, y: top, width: right - left, height: bottom - top, preserveAspectRatio: "none", class: "heat" }),
    svg("path", { d: crosses.join(""), class: "cross under" }),
    svg("path", { d: crosses.join(""), class: "cross" }),
    open < 0 ? "" : rect(left, y(open - 0.5), right - left, y(open + 0.5) - y(open - 0.5), { class: "open-layer" }),
    bottomAxis(x, bottom, expertTicks.filter(({ value }) => value < columns), model.part, (left + right) / 2),
    leftAxis(left, y, layerTicks, "layer", (top + bottom) / 2),
    ...tips,
  );
  return { removed, total: sorted.length };
}

/** A bar for each layer: its effective number of neurons, as a share of all its neurons. */
function effectiveBars(model, scorer, [start, end], y, bottom) {
  const x = scale([0, 100], [start, end]);
  const height = 0.65 * (y(1) - y(0));
  const bars = model.layers.map(({ number, size }) => {
    const share = (100 * scorer.effective[number]) / size;
    const equal = count(Math.round(scorer.effective[number]));
    const tip = `layer ${number}\neffective number of neurons: ${equal} (${share.toFixed(1)} %)`;
    return rect(start, y(number) - height / 2, x(share) - start, height, { class: "effective", tip });
  });
  const ticks = [0, 50, 100].map((value) => ({ value, label: String(value) }));
  const grid = ticks.map(({ value }) => line(x(value), y(-0.5), x(value), bottom, { class: "rule" }));
  return svg("g", {}, ...grid, ...bars, bottomAxis(x, bottom, ticks, "effective (%)", (start + end) / 2));
}

// --- one layer: its scores

/** Draw a histogram of log10 scores; return how many scores of zero it leaves out. */
function drawDistribution(box, model, scorer, plans, state) {
  const { layer } = state;
  const plan = plans[state.budget];
  const logs = Array.from({ length: layer.size }, (_, k) => Math.log10(model.relativeScore(scorer, layer, k)));
  const present = logs.filter((value) => value > -Infinity);
  let low = present.reduce((a, b) => Math.min(a, b), present.length ? Infinity : 0);
  let high = present.reduce((a, b) => Math.max(a, b), present.length ? -Infinity : 0);
  if (high - low < 0.02) [low, high] = [low - 0.5, high + 0.5];
  const width = (high - low) / BINS;
  const bins = Array.from({ length: BINS }, () => ({ kept: 0, removed: 0 }));
  logs.forEach((value, neuron) => {
    if (value === -Infinity) return;
    const bin = Math.min(Math.floor((value - low) / width), BINS - 1);
    bins[bin][plan.removes(layer, neuron) ? "removed" : "kept"] += 1;
  });
  const [left, right, top, bottom] = [44, box.clientWidth - 10, 46, 300];
  const highest = Math.max(...bins.map(({ kept, removed }) => kept + removed), 1);
  const x = scale([low, high], [left, right]);
  const y = scale([0, 1.05 * highest], [bottom, top]);
  const bars = bins.flatMap(({ kept, removed }, k) => {
    const [start, end] = [low + k * width, low + (k + 1) * width];
    const [from, wide] = [x(start), x(end) - x(start)];
    const scores = `score ${significant(10 ** start)} to ${significant(10 ** end)} × mean`;
    return [
      rect(from, y(removed), wide, bottom - y(removed), { class: "bin removed", "data-count": removed }),
      rect(from, y(removed + kept), wide, y(removed) - y(removed + kept), { class: "bin kept", "data-count": kept }),
      rect(from, top, wide, bottom - top, { class: "target", tip: `${scores}\n${count(kept)} kept, ${count(removed)} removed` }),
    ];
  });
  const ticks = wholeTicks(highest, 5);
  showChart(
    box,
    340,
    hatching(),
    ...ticks.map(({ value }) => line(left, y(value), right, y(value), { class: "rule" })),
    ...bars,
    ...BUDGETS.map((budget, row) => cutLine(model, scorer, layer, plans, budget, budget === state.budget, x, [low, high], row)),
    bottomAxis(x, bottom, logTicks(low, high), "score, × mean of the layer", (left + right) / 2),
    leftAxis(left, y, ticks, "neurons", (top + bottom) / 2),
  );
  return layer.size - present.length;
}

/** The pattern that marks removed neurons, because not everyone can tell them from kept ones by colour alone. */
function hatching() {
  const pattern = { id: "hatching", width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" };
  return svg("pattern", pattern, rect(0, 0, 5, 5, { class: "removed-ground" }), rect(0, 0, 1.6, 5, { class: "removed-stripe" }));
}

/** A line between a budget's kept and removed neurons, or "" if it keeps or removes all, or the lowest kept score is 0. */
function cutLine(model, scorer, layer, plans, budget, chosen, x, [low, high], row) {
  const { removed, kept } = model.cut(scorer, layer, plans[budget]);
  if (removed === null || kept === null || kept <= 0) return "";
  const middle = Math.log10(layer.size * (removed > 0 ? Math.sqrt(removed * kept) : kept));
  const value = Math.min(Math.max(middle, low), high);
  const [at, top] = [x(value), 34 - 16 * row];
  const right = value > (low + high) / 2;
  return svg(
    "g",
    { class: chosen ? "level chosen" : "level" },
    line(at, top, at, 300),
    text(at + (right ? -4 : 4), top + 5, `${budget} cut`, { "text-anchor": right ? "end" : "start" }),
  );
}

// --- one layer: the strongest part of its graph

/** The highest neurons and the selected one, their strongest edges, and which share of the scores these hold and carry. */
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

/** The nodes on one side, ordered by the mean row of the neurons that they have edges to, so that few edges cross. */
function sideNodes(edges, rowOf) {
  const totals = new Map();
  for (const { node, neuron, share } of edges) {
    const total = totals.get(node) ?? { node, rows: 0, weight: 0 };
    total.rows += share * rowOf.get(neuron);
    total.weight += share;
    totals.set(node, total);
  }
  const ordered = [...totals.values()].sort((a, b) => a.rows / a.weight - b.rows / b.weight || a.node - b.node);
  return ordered.map(({ node }) => node);
}

/** The name of a layer without the parts with which all prunable layers begin, and short enough for a heading. */
function shortName(model, name) {
  const [first, ...others] = model.layers.map((layer) => layer.name.split("."));
  let same = 0;
  while (others.length && same < first.length - 1 && others.every((parts) => parts[same] === first[same])) same += 1;
  const prefix = first.slice(0, same).map((part) => `${part}.`).join("");
  const rest = name.startsWith(prefix) ? name.slice(prefix.length) : name;
  return rest.length > 18 ? `…${rest.slice(-17)}` : rest;
}

function drawSubgraph(box, model, scorer, plans, state, part) {
  const { layer } = state;
  const rowOf = new Map(part.shown.map((neuron, row) => [neuron, row]));
  const sides = Object.fromEntries(["in", "out"].map((side) => [side, sideNodes(part.edges[side], rowOf)]));
  // Labels need room: those of neurons, and those of nodes if they have any.
  const most = Math.max(sides.in.length, sides.out.length);
  const room = Math.max(31 * (part.shown.length - 1), (most > MAX_LABELLED ? 7 : 12) * (most - 1), 200);
  const [top, bottom] = [58, 58 + room];
  const margin = box.clientWidth < 380 ? 52 : 64;
  const x = { in: margin, neurons: box.clientWidth / 2, out: box.clientWidth - margin };
  const spread = (row, n) => (n === 1 ? (top + bottom) / 2 : top + (row * (bottom - top)) / (n - 1));
  const yOf = new Map(part.shown.map((neuron, row) => [neuron, spread(row, part.shown.length)]));
  const edges = [];
  const nodes = [];
  for (const side of ["in", "out"]) {
    const near = layer[side];
    if (!near) continue;
    const numbers = sides[side];
    const places = new Map(numbers.map((node, row) => [node, spread(row, numbers.length)]));
    edges.push(...edgeLines(part.edges[side], side, x, places, yOf));
    const outward = side === "in" ? -1 : 1;
    for (const [node, y] of places) {
      nodes.push(svg("circle", { cx: x[side], cy: y, r: 3, class: "node", tip: `node ${node} of ${near.name}` }));
      if (numbers.length > MAX_LABELLED) continue;
      const anchor = side === "in" ? "end" : "start";
      nodes.push(text(x[side] + 7 * outward, y, node, { class: "tick", dy: "0.35em", "text-anchor": anchor }));
    }
    const heading = { "text-anchor": side === "in" ? "start" : "end" };
    nodes.push(text(side === "in" ? 6 : box.clientWidth - 6, 14, shortName(model, near.name), heading));
    nodes.push(otherNodes(x[side], bottom, near.size - numbers.length));
  }
  nodes.push(otherNodes(x.neurons, bottom, layer.size - part.shown.length));
  const neurons = part.shown.map((neuron) => neuronMark(model, scorer, plans, state, part, neuron, x.neurons, yOf.get(neuron)));
  showChart(box, bottom + 56, ...edges, ...nodes, ...neurons);
}

/** The edges between the nodes of one side and the neurons; stronger edges are thicker. */
function edgeLines(edges, side, x, places, yOf) {
  const heaviest = edges.reduce((most, { share }) => Math.max(most, share), 0);
  return edges.flatMap(({ node, neuron, share }) => {
    const ends = [x[side], places.get(node), x.neurons, yOf.get(neuron)];
    const tip =
      side === "in"
        ? `node ${node} → neuron ${neuron}\n${percent(share, 2)} of what arrives at the neuron`
        : `neuron ${neuron} → node ${node}\n${percent(share, 2)} of what leaves the neuron`;
    const quarter = Math.min(Math.floor((4 * share) / heaviest), 3);
    // A thin line is hard to point at: a wide transparent one has the text.
    return [line(...ends, { class: `edge strength-${quarter}` }), line(...ends, { class: "target edge-target", tip })];
  });
}

/** A square that represents all nodes of a layer that are not drawn. */
function otherNodes(x, bottom, number) {
  if (number <= 0) return "";
  const label = text(x, bottom + 50, `${count(number)} others`, { class: "tick", "text-anchor": "middle" });
  return svg("g", {}, rect(x - 4, bottom + 29, 8, 8, { class: "others" }), label);
}

function neuronMark(model, scorer, plans, state, part, neuron, x, y) {
  const { layer } = state;
  const relative = model.relativeScore(scorer, layer, neuron);
  const highest = model.relativeScore(scorer, layer, part.highest[0]) || 1;
  const radius = 3.5 + 5.5 * Math.sqrt(relative / highest);
  const removed = plans[state.budget].removes(layer, neuron);
  const attributes = {
    class: `neuron ${removed ? "removed" : "kept"}${neuron === state.neuron ? " selected" : ""}`,
    "data-neuron": neuron,
    tip: `neuron ${neuron}: score ${significant(relative)} × mean, ${removed ? "removed" : "kept"}`,
  };
  const mark = removed
    ? rect(x - radius, y - radius, 2 * radius, 2 * radius, { ...attributes, transform: `rotate(45 ${x} ${y})` })
    : svg("circle", { cx: x, cy: y, r: radius, ...attributes });
  return svg("g", {}, mark, text(x, y - radius - 3, neuron, { class: "tick strong", "text-anchor": "middle" }));
}
