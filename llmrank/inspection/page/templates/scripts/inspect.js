// What happens when the page is opened, and when the reader does something.

// --- charts: drawn at most once per frame, however fast the slider moves

let frame = 0;

function scheduleCharts() {
  if (frame) return;
  frame = requestAnimationFrame(() => {
    frame = 0;
    drawCharts();
    showAgreement();
  });
}

function drawCharts() {
  // The text beside the pointer may describe an element that is replaced now.
  hideTip();
  const scorer = currentScorer();
  const { layer } = state;
  const nRemoved = plans[state.budget].counts[layer.number];

  const overview = byId("overview-plot");
  drawOverview(overview, model, scorer, plans, state);
  overview.ariaLabel = `Heat map of the scores of ${plural(model.layers.length, "layer")} with both cuts; the table below holds the same.`;

  if (model.mixtures.length) {
    const box = byId("experts-plot");
    const { removed, total } = drawExperts(box, model, scorer, plans, state, model.hasHeads ? "score" : byId("experts-measure").value);
    const words = `${count(removed)} of ${plural(total, model.part)} removed (crosses), ${state.budget} at ${amountText()}.`;
    byId("experts-caption").textContent = words;
    box.ariaLabel = `Heat map of the ${model.part}s of ${plural(model.mixtures.length, "layer")}: ${words} The table of an open layer holds the same.`;
  }

  const distribution = byId("distribution-plot");
  const zeros = drawDistribution(distribution, model, scorer, plans, state);
  const missing = zeros ? `; ${plural(zeros, "neuron")} of score 0 not drawn` : "";
  const shares = `${count(layer.size - nRemoved)} kept (plain) and ${count(nRemoved)} removed (hatched)${missing}.`;
  byId("distribution-caption").textContent = shares;
  distribution.ariaLabel = `Histogram of the scores of layer ${layer.number}: ${shares}`;

  const subgraph = byId("subgraph-plot");
  const part = strongestPart(model, scorer, layer, Number(byId("subgraph-size").value), state.neuron);
  drawSubgraph(subgraph, model, scorer, plans, state, part);
  const held =
    `hold ${percent(part.held)} of the layer's score. Their ${model.edges.top} strongest edges on each side carry ` +
    `${percent(part.carriedIn)} of what arrives and ${percent(part.carriedOut)} of what leaves` +
    `${part.unknown ? "; the page does not hold the edges of all of them" : ""}.`;
  byId("subgraph-caption").textContent = held;
  subgraph.ariaLabel = `Graph: the ${part.highest.length} highest neurons ${held}`;
}

// --- the state

function refresh() {
  plansByScorer = new Map();
  plans = Object.fromEntries(BUDGETS.map((budget) => [budget, planOf(state.scorer, budget)]));
  sortNeurons();
  showCounts();
  showLayers();
  showLayer();
  showExperts();
  showNeuron();
  showNeurons();
  showFound();
  scheduleCharts();
}

function openLayer(layer, neuron = null, expert = null) {
  state.layer = layer;
  state.neuron = neuron;
  state.expert = expert;
  if (!layer.experts && state.sort.column === model.part) state.sort = { column: "place", descending: false };
  state.preview = null;
  state.page = 0;
  refresh();
  if (neuron !== null) {
    // A filter must not hide the neuron that is opened.
    if (!rows.includes(neuron)) {
      state.filter = "all";
      byId("filter").value = "all";
      sortNeurons();
    }
    turnToNeuron(neuron);
    showNeurons();
  }
}

/** List the neurons of one expert of the open mixture, or with null of all. */
function openExpert(expert) {
  state.expert = expert;
  state.page = 0;
  sortNeurons();
  showExperts();
  showNeurons();
}

function selectNeuron(neuron) {
  state.neuron = neuron;
  // A neuron of another expert, in a chart, is shown among all neurons.
  if (state.expert !== null && model.expertOf(state.layer, neuron) !== state.expert) openExpert(null);
  state.preview = null;
  turnToNeuron(neuron);
  showNeuron();
  showNeurons();
  scheduleCharts();
}

/** Open the layer or neuron that a text names, and tell the reader which it was or what is wrong. */
function openNamed(text) {
  const found = findNeuron(model, text, state.layer);
  if (found.error) {
    byId("query-result").textContent = found.error;
    return;
  }
  openLayer(found.layer, found.neuron, found.expert ?? null);
  const which =
    (found.neuron === null ? "" : `neuron ${found.neuron} of `) + (found.expert ? `${model.part} ${found.expert.label} of ` : "");
  byId("query-result").textContent = `Opened ${which}layer ${found.layer.number}, ${found.layer.name}.`;
  byId(found.neuron === null ? "layer" : "neuron").scrollIntoView({ block: "nearest" });
}

/** Open the neuron of a link that ends in #3:17, for example. A fragment that is an element's id only scrolls the page there. */
function followFragment() {
  const text = new URLSearchParams(`q=${location.hash.slice(1)}`).get("q");
  if (text && !byId(text)) openNamed(text);
}

// --- controls

/**
 * Let arrow keys move between the buttons in a table's first column, which then has one tab stop. `afterMove(button)` runs
 * after each move. `turn(key)` may turn to other rows, and returns the button that gets the focus, or null.
 */
function moveByArrowKeys(table, afterMove, turn = () => null) {
  table.addEventListener("keydown", (event) => {
    const button = event.target.closest("tbody button");
    if (!button) return;
    const buttons = [...table.querySelectorAll("tbody button")];
    const at = buttons.indexOf(button);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    const next = buttons[to] ?? turn(event.key);
    // At both ends the arrow key would scroll the page.
    if (next || to !== undefined) event.preventDefault();
    if (!next) return;
    for (const each of table.querySelectorAll("tbody button")) each.tabIndex = each === next ? 0 : -1;
    next.focus();
    afterMove(next);
  });
}

function listenToChoices() {
  byId("scorer").addEventListener("change", (event) => {
    state.scorer = event.target.value;
    refresh();
  });
  byId("multiple").addEventListener("change", (event) => {
    state.multiple = event.target.value === "auto" ? "auto" : Number(event.target.value);
    refresh();
  });
  for (const radio of document.querySelectorAll("[name=budget]")) {
    radio.addEventListener("change", () => {
      state.budget = radio.value;
      refresh();
    });
  }
  byId("amount").addEventListener("input", (event) => {
    state.amount = Number(event.target.value);
    refresh();
  });
  byId("as-inspected").addEventListener("click", () => {
    state.amount = data.inspected.amount;
    refresh();
    // The button is disabled now: without this the keyboard focus would return to the start of the page.
    byId("amount").focus();
  });
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    openNamed(byId("query").value);
  });
  byId("download").addEventListener("submit", (event) => {
    event.preventDefault();
    download(byId("download-what").value, byId("download-scope").value);
  });
}

function listenToLayers() {
  const table = byId("layers");
  table.addEventListener("click", (event) => {
    const row = event.target.closest("tbody tr");
    if (row) openLayer(model.layers[Number(row.dataset.row)]);
  });
  moveByArrowKeys(table, (button) => openLayer(model.layers[Number(button.closest("tr").dataset.row)]));
  byId("layer-choice").addEventListener("change", (event) => openLayer(model.layers[Number(event.target.value)]));
  byId("previous").addEventListener("click", () => openLayer(model.layers[state.layer.number - 1]));
  byId("next").addEventListener("click", () => openLayer(model.layers[state.layer.number + 1]));
  byId("agreement").addEventListener("toggle", showAgreement);
  byId("subgraph-size").addEventListener("change", scheduleCharts);
}

function listenToExperts() {
  const table = byId("experts-table");
  const expertAt = (target) => state.layer.experts[Number(target.closest("tr").dataset.row)];
  table.tHead.addEventListener("click", (event) => {
    const column = event.target.closest("button")?.dataset.column;
    if (!column) return;
    // The most used and the highest come first, at the first click.
    const first = column !== model.part;
    state.expertSort = { column, descending: state.expertSort.column === column ? !state.expertSort.descending : first };
    showExperts();
  });
  table.tBodies[0].addEventListener("click", (event) => {
    const expert = expertAt(event.target);
    openExpert(expert === state.expert ? null : expert);
  });
  moveByArrowKeys(table, (button) => openExpert(expertAt(button)));
  byId("all-experts").addEventListener("click", () => {
    openExpert(null);
    byId("experts-table").querySelector("tbody button").focus();
  });
  byId("experts-measure")?.addEventListener("change", scheduleCharts);
}

function listenToNeurons() {
  const table = byId("neurons");
  table.tHead.addEventListener("click", (event) => {
    const column = event.target.closest("button")?.dataset.column;
    if (!column) return;
    state.sort = { column, descending: state.sort.column === column && !state.sort.descending };
    showFirstNeurons();
  });
  byId("filter").addEventListener("change", (event) => {
    state.filter = event.target.value;
    showFirstNeurons();
  });
  const body = table.tBodies[0];
  const neuronOf = (event) => {
    const row = event.target.closest("tr");
    return row ? Number(row.dataset.row) : null;
  };
  body.addEventListener("click", (event) => selectNeuron(neuronOf(event)));
  const preview = (neuron) => {
    if (neuron === state.preview) return;
    state.preview = neuron;
    showNeuron();
  };
  for (const name of ["mouseover", "focusin"]) body.addEventListener(name, (event) => preview(neuronOf(event)));
  body.addEventListener("mouseleave", () => preview(null));
  body.addEventListener("focusout", (event) => {
    if (!body.contains(event.relatedTarget)) preview(null);
  });
  const turn = (key) => {
    const by = { ArrowDown: 1, PageDown: 1, ArrowUp: -1, PageUp: -1 }[key] ?? 0;
    if (by === 0 || state.page + by < 0 || state.page + by >= pages()) return null;
    turnTo(state.page + by);
    const buttons = [...body.querySelectorAll("button")];
    return key === "ArrowUp" ? buttons.at(-1) : buttons[0];
  };
  moveByArrowKeys(table, () => {}, turn);
  byId("page-first").addEventListener("click", () => turnTo(0));
  byId("page-previous").addEventListener("click", () => turnTo(state.page - 1));
  byId("page-next").addEventListener("click", () => turnTo(state.page + 1));
  byId("page-last").addEventListener("click", () => turnTo(pages() - 1));
}

/** Follow links to neurons; and follow the system's change to light or dark until the reader chooses one. */
function listenToPage() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const follow = (event) => setTheme(event.matches);
  system.addEventListener("change", follow);
  byId("theme").addEventListener("click", () => {
    system.removeEventListener("change", follow);
    setTheme(!isDark());
  });
  addEventListener("hashchange", followFragment);
}

/** Draw the charts again when the width of a box changes. Their heights follow from what they show. */
function watchWidths() {
  const widths = new Map();
  const observer = new ResizeObserver((entries) => {
    const changed = entries.filter(({ target, contentRect }) => widths.get(target) !== contentRect.width);
    for (const { target, contentRect } of changed) widths.set(target, contentRect.width);
    if (changed.length) scheduleCharts();
  });
  for (const box of document.querySelectorAll(".plot")) {
    widths.set(box, box.clientWidth);
    observer.observe(box);
  }
}

/** Let the pointer open layers and neurons in the charts. Without a pointer, the tables do the same. */
function listenToCharts() {
  for (const box of document.querySelectorAll(".plot")) {
    box.addEventListener("pointermove", showTip);
    box.addEventListener("pointerleave", hideTip);
    box.addEventListener("click", (event) => {
      const { layer, neuron, experts } = event.target.dataset;
      if (layer !== undefined) {
        const opened = model.layers[Number(layer)];
        const { left, width } = event.target.getBoundingClientRect();
        const at = Math.floor(((event.clientX - left) / width) * Number(experts));
        openLayer(opened, null, experts ? (opened.experts.filter(({ routed }) => routed)[at] ?? null) : null);
      }
      if (neuron !== undefined) selectNeuron(Number(neuron));
    });
  }
}

// --- download

/** A text as a cell of CSV; an apostrophe stands before one that a spreadsheet would compute. */
function quoted(value) {
  const text = /^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(value) ? `'${value}` : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** The chosen neurons of some layers as CSV. Scores have nine digits, enough to restore a float32 exactly. */
function csv(what, layers) {
  const scorer = currentScorer();
  const inMixtures = model.mixtures.length > 0;
  const lines = [`layer_number,layer,neuron,score,place,local,global${inMixtures ? `,${model.part}` : ""}`];
  const chosen = plans[state.budget];
  for (const layer of layers) {
    for (let k = 0; k < layer.size; k += 1) {
      if (what !== "all" && chosen.removes(layer, k) !== (what === "removed")) continue;
      const score = Number(scorer.scores[layer.start + k].toPrecision(9));
      const words = BUDGETS.map((budget) => (plans[budget].removes(layer, k) ? "removed" : "kept"));
      const expert = inMixtures ? [layer.experts ? quoted(model.expertOf(layer, k).label) : ""] : [];
      lines.push([layer.number, quoted(layer.name), k, score, model.place(scorer, layer, k), ...words, ...expert].join(","));
    }
  }
  return { text: `${lines.join("\r\n")}\r\n`, rows: lines.length - 1 };
}

function download(what, scope) {
  const { text, rows: written } = csv(what, scope === "layer" ? [state.layer] : model.layers);
  const amount = amountText().replace(" %", "pct");
  const where = scope === "layer" ? `layer-${state.layer.number}` : "all-layers";
  const widths = { auto: [], 1: ["any-width"] }[state.multiple] ?? [`multiples-of-${state.multiple}`];
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
}

function start() {
  setTheme(isDark());
  showProvenance();
  byId("scorer").value = state.scorer;
  byId("multiple").value = state.multiple;
  document.querySelector(`[name=budget][value=${state.budget}]`).checked = true;
  byId("amount").max = data.slider_end;
  listenToChoices();
  listenToLayers();
  if (model.mixtures.length) listenToExperts();
  if (model.meanings) listenToMeanings();
  if (data.changes) showChanges();
  listenToNeurons();
  listenToCharts();
  listenToPage();
  refresh();
  followFragment();
  watchWidths();
}

start();
