// What people do, and what follows.

// --- plots: drawn once a frame at the most, however fast the slider moves

let pending = 0;

function schedulePlots() {
  if (pending || typeof Plotly === "undefined") return;
  pending = requestAnimationFrame(() => {
    pending = 0;
    drawPlots();
    showAgreement();
  });
}

function drawPlots() {
  const shown = scorer();
  const { layer } = state;
  const gone = plans[state.budget].counts[layer.number];

  const overview = byId("overview-plot");
  drawOverview(overview, model, shown, plans, state);
  overview.ariaLabel = `Heat map: scores of ${plural(model.layers.length, "layer")} and both cuts, as in the table below.`;

  const distribution = byId("distribution-plot");
  const zeros = drawDistribution(distribution, model, shown, plans, state);
  const missing = zeros ? `; ${plural(zeros, "neuron")} of score 0 not drawn` : "";
  const shares = `${count(layer.size - gone)} kept (plain) and ${count(gone)} removed (hatched)${missing}.`;
  byId("distribution-caption").textContent = shares;
  distribution.ariaLabel = `Histogram of the scores of layer ${layer.number}: ${shares}`;

  const subgraph = byId("subgraph-plot");
  const part = strongestPart(model, shown, layer, Number(byId("subgraph-size").value), state.neuron);
  drawSubgraph(subgraph, model, shown, plans, state, part);
  const held =
    `hold ${percent(part.held)} of the layer's score. Their ${model.edges.top} strongest edges each way carry ` +
    `${percent(part.carriedIn)} of what arrives and ${percent(part.carriedOut)} of what leaves` +
    `${part.unknown ? "; some edges are not in this page" : ""}.`;
  byId("subgraph-caption").textContent = held;
  subgraph.ariaLabel = `Node-link drawing: the ${part.highest.length} highest neurons ${held}`;
}

// --- the whole

function refresh() {
  planned = new Map();
  plans = Object.fromEntries(BUDGETS.map((budget) => [budget, planOf(state.scorer, budget)]));
  sortNeurons();
  showCounts();
  showLayers();
  showLayer();
  showNeuron();
  showNeurons();
  schedulePlots();
}

function open(layer, neuron = null) {
  state.layer = layer;
  state.neuron = neuron;
  state.preview = null;
  state.page = 0;
  refresh();
  if (neuron !== null) {
    // A filter would hide what was asked for.
    if (!rows.includes(neuron)) {
      state.filter = "all";
      byId("filter").value = "all";
      sortNeurons();
    }
    reveal(neuron);
    showNeurons();
  }
}

function select(neuron) {
  state.neuron = neuron;
  state.preview = null;
  reveal(neuron);
  showNeuron();
  showNeurons();
  schedulePlots();
}

/** Open what a text names, and say what came of it. */
function goTo(text) {
  const found = findNeuron(model, text, state.layer);
  if (found.error) {
    byId("query-result").textContent = found.error;
    return;
  }
  open(found.layer, found.neuron);
  const which = found.neuron === null ? "" : `neuron ${found.neuron} of `;
  byId("query-result").textContent = `Opened ${which}layer ${found.layer.number}, ${found.layer.name}.`;
  byId(found.neuron === null ? "layer" : "neuron").scrollIntoView({ block: "nearest" });
}

/** A link may end in #3:17. Other fragments, such as the skip link's, are places of the page. */
function followFragment() {
  const text = new URLSearchParams(`q=${location.hash.slice(1)}`).get("q");
  if (text && !byId(text)) goTo(text);
}

// --- what people do

/**
 * Arrow keys within the column of buttons of a table: one tab stop, whatever the number of rows.
 * `turn(key)` may bring other rows and says which of their buttons comes next.
 */
function roving(table, moved, turn = () => null) {
  table.addEventListener("keydown", (event) => {
    const button = event.target.closest("tbody button");
    if (!button) return;
    const buttons = [...table.querySelectorAll("tbody button")];
    const at = buttons.indexOf(button);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    const next = buttons[to] ?? turn(event.key);
    // At either end the arrow must not scroll the page instead.
    if (next || to !== undefined) event.preventDefault();
    if (!next) return;
    for (const each of table.querySelectorAll("tbody button")) each.tabIndex = each === next ? 0 : -1;
    next.focus();
    moved(next);
  });
}

function listen() {
  byId("scorer").addEventListener("change", (event) => {
    state.scorer = event.target.value;
    refresh();
  });
  byId("multiple").addEventListener("change", (event) => {
    state.multiple = Number(event.target.value);
    refresh();
  });
  for (const radio of document.querySelectorAll("[name=budget]")) {
    radio.addEventListener("change", () => {
      state.budget = radio.value;
      refresh();
    });
  }
  byId("amount").addEventListener("input", (event) => {
    state.amount = { percent: Number(event.target.value) };
    refresh();
  });
  byId("as-asked").addEventListener("click", () => {
    state.amount = model.asked.percent === null ? "asked" : { percent: model.asked.percent };
    refresh();
    // The button disables itself; the keyboard should not fall back to the start of the page.
    byId("amount").focus();
  });

  const layers = byId("layers");
  layers.addEventListener("click", (event) => {
    const row = event.target.closest("tbody tr");
    if (row) open(model.layers[Number(row.dataset.row)]);
  });
  roving(layers, (button) => open(model.layers[Number(button.closest("tr").dataset.row)]));
  byId("layer-choice").addEventListener("change", (event) => open(model.layers[Number(event.target.value)]));
  byId("previous").addEventListener("click", () => open(model.layers[state.layer.number - 1]));
  byId("next").addEventListener("click", () => open(model.layers[state.layer.number + 1]));
  byId("agreement").addEventListener("toggle", showAgreement);
  byId("subgraph-size").addEventListener("change", schedulePlots);

  const neurons = byId("neurons");
  neurons.tHead.addEventListener("click", (event) => {
    const column = event.target.closest("button")?.dataset.column;
    if (!column) return;
    state.sort = { column, descending: state.sort.column === column && !state.sort.descending };
    state.page = 0;
    sortNeurons();
    showNeurons();
  });
  const body = neurons.tBodies[0];
  const neuronOf = (event) => {
    const row = event.target.closest("tr");
    return row ? Number(row.dataset.row) : null;
  };
  body.addEventListener("click", (event) => select(neuronOf(event)));
  for (const name of ["mouseover", "focusin"]) {
    body.addEventListener(name, (event) => {
      const neuron = neuronOf(event);
      if (neuron === state.preview) return;
      state.preview = neuron;
      showNeuron();
    });
  }
  const endPreview = () => {
    state.preview = null;
    showNeuron();
  };
  body.addEventListener("mouseleave", endPreview);
  body.addEventListener("focusout", (event) => {
    if (!body.contains(event.relatedTarget)) endPreview();
  });
  roving(
    neurons,
    () => {},
    (key) => {
      const by = { ArrowDown: 1, PageDown: 1, ArrowUp: -1, PageUp: -1 }[key] ?? 0;
      if (by === 0 || state.page + by < 0 || state.page + by >= pages()) return null;
      turnTo(state.page + by);
      const buttons = [...body.querySelectorAll("button")];
      return key === "ArrowUp" ? buttons.at(-1) : buttons[0];
    },
  );
  byId("filter").addEventListener("change", (event) => {
    state.filter = event.target.value;
    state.page = 0;
    sortNeurons();
    showNeurons();
  });
  byId("page-first").addEventListener("click", () => turnTo(0));
  byId("page-previous").addEventListener("click", () => turnTo(state.page - 1));
  byId("page-next").addEventListener("click", () => turnTo(state.page + 1));
  byId("page-last").addEventListener("click", () => turnTo(pages() - 1));

  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    goTo(byId("query").value);
  });

  byId("download").addEventListener("submit", (event) => {
    event.preventDefault();
    download(byId("download-what").value, byId("download-scope").value);
  });

  const system = matchMedia("(prefers-color-scheme: dark)");
  const follow = (event) => setTheme(event.matches);
  system.addEventListener("change", follow);
  byId("theme").addEventListener("click", () => {
    // What was chosen by hand stays.
    system.removeEventListener("change", follow);
    setTheme(!isDark());
  });
  addEventListener("hashchange", followFragment);
}

/** Plots are drawn for the width of their boxes, and again where that changes; heights follow from what is shown. */
function watchWidths() {
  const widths = new Map();
  const observer = new ResizeObserver((entries) => {
    const changed = entries.filter(({ target, contentRect }) => widths.get(target) !== contentRect.width);
    for (const { target, contentRect } of changed) widths.set(target, contentRect.width);
    if (changed.length) schedulePlots();
  });
  for (const box of document.querySelectorAll(".plot")) {
    widths.set(box, box.clientWidth);
    observer.observe(box);
  }
}

/** Clicks on the plots; they are a second way, everything they do the tables do too. */
function listenToPlots() {
  byId("overview-plot").on("plotly_click", ({ points }) => {
    const layer = model.layers[Math.round(points[0].y)];
    if (layer) open(layer);
  });
  byId("subgraph-plot").on("plotly_click", ({ points }) => {
    if (points[0].customdata !== undefined) select(points[0].customdata);
  });
}

// --- download

const quoted = (value) => (/[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));

/** Scores have nine digits, which name a float32 uniquely; the positions are the library's orders of removal. */
function csv(what, layers) {
  const shown = scorer();
  const lines = ["layer_number,layer,neuron,score,place,local_position,global_position,local,global"];
  const chosen = plans[state.budget];
  const word = (budget, layer, k) => (plans[budget].removes(layer, k) ? "removed" : "kept");
  for (const layer of layers) {
    for (let k = 0; k < layer.size; k += 1) {
      if (what !== "all" && chosen.removes(layer, k) !== (what === "removed")) continue;
      const at = layer.start + k;
      lines.push(
        [
          ...[layer.number, quoted(layer.name), k, Number(shown.scores[at].toPrecision(9))],
          ...[layer.size - shown.local[at], shown.local[at], shown.global[at]],
          ...[word("local", layer, k), word("global", layer, k)],
        ].join(","),
      );
    }
  }
  return { text: `${lines.join("\r\n")}\r\n`, rows: lines.length - 1 };
}

function download(what, scope) {
  const { text, rows: written } = csv(what, scope === "layer" ? [state.layer] : model.layers);
  const amount = amountText().replace(" %", "pct");
  const where = scope === "layer" ? `layer-${state.layer.number}` : "all-layers";
  const widths = state.multiple === 1 ? [] : [`multiples-of-${state.multiple}`];
  const parts = [data.source, state.scorer, state.budget, amount, ...widths, where, what];
  const name = `${parts.map((part) => part.replace(/[^\p{L}\p{N}.-]+/gu, "-")).join("_")}.csv`;
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
  byId("download-result").textContent = `${plural(written, "neuron")} in ${name}`;
}

// --- light and dark

function isDark() {
  return document.documentElement.dataset.theme === "dark";
}

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  byId("theme").setAttribute("aria-pressed", String(dark));
  if (plans.local) schedulePlots();
}

function start() {
  setTheme(isDark());
  showProvenance();
  byId("scorer").value = state.scorer;
  byId("multiple").value = state.multiple;
  document.querySelector(`[name=budget][value=${state.budget}]`).checked = true;
  byId("amount").max = SLIDER_END;
  listen();
  refresh();
  followFragment();
  performance.mark("responsive");
  // The charts library comes last in the page and takes longest: until then counts and tables work without it.
  document.addEventListener("DOMContentLoaded", () => {
    drawPlots();
    showAgreement();
    listenToPlots();
    watchWidths();
    performance.mark("interactive");
  });
}

start();
