// Counts, tables and facts. Every function named show... reads the state and writes one part of the page.

const PAGE_ROWS = 20;
// Screen readers announce where the slider stops, not every step on the way: they wait for this many milliseconds.
const ANNOUNCED_AFTER = 400;

const byId = (id) => document.getElementById(id);

/** An HTML element. Strings become text and never markup, so that names from a model can do no harm. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") made.className = value;
    else if (key in made && !key.startsWith("aria")) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** The elements of a description list, from pairs of a term and a value. */
function termsAndValues(pairs) {
  return pairs.flatMap(([term, value]) => [element("dt", {}, term), element("dd", {}, value)]);
}

function currentScorer() {
  return model.scorer(state.scorer);
}

/** What a budget removes by a scorer at the chosen amount. */
function planOf(scorer, budget) {
  const key = `${budget} ${scorer}`;
  if (!plansByScorer.has(key)) {
    plansByScorer.set(key, model.plan(model.scorer(scorer), budget, state.multiple, state.amount));
  }
  return plansByScorer.get(key);
}

function verdict(removed) {
  return element("span", { class: removed ? "state removed" : "state" }, removed ? "removed" : "kept");
}

function amountText() {
  return data.amounts[state.amount];
}

// --- what does not change

function showProvenance() {
  byId("provenance").append(
    ...[
      ["topology", data.topology],
      ["inspected with", `${data.scorer}, ${data.budget}, ${data.amounts[data.inspected.amount]}`],
      ["neurons", `${count(model.total)} in ${plural(model.layers.length, "layer")}`],
      ["graph", `${count(data.graph.nodes)} nodes, ${count(data.graph.edges)} edges`],
      ["calibration", data.calibration],
    ].map((pair) => element("div", {}, ...termsAndValues([pair]))),
  );
  if (!model.mixtures.length) for (const each of document.querySelectorAll(".of-mixtures")) each.remove();
  for (const each of document.querySelectorAll(model.hasHeads ? ".of-experts" : ".of-heads")) each.remove();
  if (!model.meanings) for (const each of document.querySelectorAll(".of-meanings")) each.remove();
  if (!data.changes) byId("changes").remove();
  byId("amount").disabled = model.isFixed;
  byId("as-inspected").hidden = model.isFixed;
  byId("notes").hidden = data.notes.length === 0;
  byId("notes").textContent = data.notes.join(" ");
  byId("scorer").append(...model.names.map((name) => element("option", { value: name }, name)));
  const named = { auto: "fast widths", 1: "any width" };
  const widths = data.multiples.map((n) => element("option", { value: n }, named[n] ?? `multiples of ${n}`));
  byId("multiple").append(...widths);
  byId("multiple").parentElement.hidden = model.hasHeads;
  byId("layer-choice").append(
    ...model.layers.map((layer) => element("option", { value: layer.number }, `${layer.number} · ${layer.name}`)),
  );
  byId("as-inspected").textContent = `back to ${data.amounts[data.inspected.amount]}`;
  const example = Math.min(3, model.layers.length - 1);
  byId("query").placeholder = `such as ${example}${model.layers[example].experts ? ".0" : ""}:17`;
  if (!model.hasHeads) {
    byId("normalize").textContent = data.normalize;
    byId("min-keep").textContent = plural(data.min_keep, model.removesWhole ? "expert" : "neuron");
  }
  byId("edge-scorer").textContent = data.scorer;
  byId("versions").textContent = Object.entries(data.versions)
    .map(([name, version]) => `${name} ${version}`)
    .join(" · ");
}

// --- counts

let announcement = 0;

function showCounts() {
  for (const budget of BUDGETS) {
    const { total, refusal } = plans[budget];
    const shown = byId(`count-${budget}`);
    shown.className = budget === state.budget ? "chosen" : "";
    const removed = element("span", { class: "removed" }, count(total));
    const kept = element("span", { class: "kept" }, count(model.total - total));
    shown.lastElementChild.replaceChildren(
      ...(refusal ? [`refused: ${refusal}`] : [removed, " removed, ", kept, " kept"]),
    );
  }
  const { total, refusal } = plans[state.budget];
  const sentence = refusal
    ? `${state.budget} pruning refuses ${amountText()}: ${refusal}.`
    : `${amountText()}: ${state.budget} pruning removes ${count(total)} of ${count(model.total)} neurons and keeps ` +
      `${count(model.total - total)}. In the open layer it removes ${count(plans[state.budget].counts[state.layer.number])}.`;
  clearTimeout(announcement);
  announcement = setTimeout(() => (byId("status").textContent = sentence), ANNOUNCED_AFTER);
  const slider = byId("amount");
  slider.value = state.amount === data.inspected.amount ? data.inspected.slider : state.amount;
  slider.setAttribute("aria-valuetext", `${amountText()}, ${count(total)} neurons removed`);
  byId("amount-shown").textContent = amountText();
  byId("as-inspected").disabled = state.amount === data.inspected.amount;
}

// --- all layers

const LAYER_COLUMNS = ["layer", "neurons", "local", "global", "kept", "effective", "Gini", "top 1 %"];

function showLayers() {
  const { counts } = plans[state.budget];
  const scorer = currentScorer();
  byId("overview-caption").textContent =
    `Scores by ${state.scorer}. At ${amountText()} the ${state.budget} budget removes ${model.mixtures.length ? "as many neurons as lie" : "the neurons"} ` +
    "to the right of the solid line. Click a layer to open it.";
  const other = state.budget === "local" ? "global" : "local";
  const entry = (kind, words) => element("span", {}, element("i", { class: kind }), words);
  byId("overview-legend").replaceChildren(
    entry("", `${state.budget} cut`),
    entry("other", `${other} cut`),
    entry("veiled", "removed"),
  );
  const head = element("tr", {}, ...LAYER_COLUMNS.map((name) => element("th", { scope: "col" }, name)));
  byId("layers").tHead.replaceChildren(head);
  // The rows stay and only their cells change, because a button that has the keyboard focus must not disappear.
  const body = byId("layers").tBodies[0];
  if (!body.rows.length) {
    for (const layer of model.layers) {
      const button = element("button", { type: "button", tabIndex: -1, title: layer.name }, String(layer.number));
      const cells = LAYER_COLUMNS.slice(1).map(() => element("td"));
      const row = element("tr", {}, element("th", { scope: "row" }, button), ...cells);
      row.dataset.row = layer.number;
      body.append(row);
    }
  }
  model.layers.forEach((layer, k) => {
    const row = body.rows[k];
    const isOpen = layer === state.layer;
    const kept = layer.size - counts[k];
    row.className = isOpen ? "chosen" : "";
    const button = row.querySelector("button");
    button.tabIndex = isOpen ? 0 : -1;
    if (isOpen) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    const filled = element("i");
    filled.style.width = `${(100 * kept) / layer.size}%`;
    const bar = element("span", { class: "bar", "aria-hidden": "true" }, filled);
    const cells = row.cells;
    cells[1].textContent = count(layer.size);
    cells[2].textContent = `−${count(plans.local.counts[k])}`;
    cells[3].textContent = `−${count(plans.global.counts[k])}`;
    cells[4].replaceChildren(count(kept), bar);
    cells[5].textContent = count(Math.round(scorer.effective[k]));
    cells[6].textContent = scorer.gini[k].toFixed(2);
    cells[7].textContent = percent(scorer.top[k]);
  });
}

function showAgreement() {
  const box = byId("agreement");
  box.hidden = model.names.length < 2;
  if (!box.open || box.hidden) return;
  const own = plans[state.budget];
  byId("agreement-caption").textContent =
    `The share of the neurons kept by ${state.scorer} (${state.budget}, ${amountText()}) that each other scorer keeps too.`;
  const head = ["scorer", "all layers", "open layer"].map((name, k) =>
    element("th", { scope: "col", class: k ? "" : "words" }, name),
  );
  const table = box.querySelector("table");
  table.tHead.replaceChildren(element("tr", {}, ...head));
  const share = (value) => (Number.isNaN(value) ? "–" : percent(value));
  table.tBodies[0].replaceChildren(
    ...model.names
      .filter((name) => name !== state.scorer)
      .map((name) => {
        const theirs = planOf(name, state.budget);
        return element(
          "tr",
          {},
          element("th", { scope: "row", class: "words" }, name),
          element("td", {}, share(keptOverlap(model.layers, own, theirs))),
          element("td", {}, share(keptOverlap([state.layer], own, theirs))),
        );
      }),
  );
}

// --- the open layer

function showLayer() {
  const { layer } = state;
  const heading = byId("layer-heading");
  heading.replaceChildren(`Layer ${layer.number} `, element("span", { class: "name muted" }, layer.name));
  byId("layer-choice").value = layer.number;
  byId("previous").disabled = layer.number === 0;
  byId("next").disabled = layer.number === model.layers.length - 1;
  const removed = BUDGETS.map((budget) => `${budget} ${count(plans[budget].counts[layer.number])}`);
  const differ = Array.from({ length: layer.size }, (_, k) => k).filter(
    (k) => plans.local.removes(layer, k) !== plans.global.removes(layer, k),
  ).length;
  byId("layer-caption").textContent =
    `${plural(layer.size, "neuron")}. Removed at ${amountText()}: ${removed.join(", ")}; ` +
    `the two budgets differ in ${plural(differ, "neuron")}.`;
}

function showNeuron() {
  const { layer } = state;
  const scorer = currentScorer();
  const neuron = state.preview ?? state.neuron ?? model.order(scorer, layer)[0];
  const expert = layer.experts ? model.expertOf(layer, neuron) : null;
  byId("neuron-heading").textContent =
    `Neuron ${layer.number}:${neuron}` + (expert ? `, neuron ${neuron - expert.start} of ${model.part} ${expert.label}` : "");
  const at = layer.start + neuron;
  const facts = [
    ["score", significant(scorer.scores[at])],
    ["× mean", significant(model.relativeScore(scorer, layer, neuron))],
    ["place", `${count(model.place(scorer, layer, neuron))} of ${count(layer.size)}`],
    ["activation", significant(model.activation[at])],
    ["strength in", significant(model.inStrength[at])],
    ["strength out", significant(model.outStrength[at])],
  ];
  byId("neuron-facts").replaceChildren(
    element("dl", {}, ...termsAndValues(facts)),
    strongestEdges(layer, neuron, "in", "Strongest edges from"),
    strongestEdges(layer, neuron, "out", "Strongest edges to"),
    ...(model.meanings ? [meaningOf(layer, neuron)] : []),
    verdicts(layer, neuron),
  );
}

/** The strongest edges on one side of a neuron, with their shares. */
function strongestEdges(layer, neuron, side, title) {
  const near = layer[side];
  if (!near) return element("div", {}, element("h4", {}, `${title}: there is no layer`));
  const heading = element("h4", {}, `${title} `, element("span", { class: "name" }, near.name));
  const edges = model.edges.of(layer, neuron, side);
  let pairs = [["–", "not in this page; see the note at the top"]];
  if (edges !== null) {
    pairs = edges.length ? edges.map(({ node, share }) => [`node ${node}`, percent(share, 2)]) : [["–", "no edge"]];
  }
  return element("div", {}, heading, element("dl", {}, ...termsAndValues(pairs)));
}

/** For every scorer: whether both budgets keep a neuron, by what margin, and from which amount they remove it. */
function verdicts(layer, neuron) {
  const head = ["scorer", "× mean", "place", "local", "margin", "removed from", "global", "margin", "removed from"];
  const body = model.names.map((name) => {
    const scorer = model.scorer(name);
    const cells = [significant(model.relativeScore(scorer, layer, neuron)), count(model.place(scorer, layer, neuron))];
    for (const budget of BUDGETS) {
      const plan = planOf(name, budget);
      const margin = model.margin(scorer, layer, neuron, plan);
      const from = model.removedFrom(scorer, layer, neuron, budget, state.multiple);
      cells.push(
        verdict(plan.removes(layer, neuron)),
        margin === Infinity ? "∞" : Number.isNaN(margin) ? "–" : significant(margin),
        from !== null ? `${from} %` : model.isFixed || model.unitsOf[layer.start + neuron] < 0 ? "–" : `> ${data.slider_end} %`,
      );
    }
    const row = [element("th", { scope: "row", class: "words" }, name), ...cells.map((cell) => element("td", {}, cell))];
    return element("tr", { class: name === state.scorer ? "chosen" : "" }, ...row);
  });
  const columns = head.map((name, k) => element("th", { scope: "col", class: k ? "" : "words" }, name));
  const table = element(
    "table",
    {},
    element("caption", { class: "unseen" }, "This neuron by every scorer, under both budgets"),
    element("thead", {}, element("tr", {}, ...columns)),
    element("tbody", {}, ...body),
  );
  const box = element("div", { class: "verdicts scroll", tabIndex: 0, role: "region" }, table);
  box.setAttribute("aria-label", "This neuron by every scorer, under both budgets");
  return box;
}

// --- the experts of the open layer

const shortLabel = ({ label, routed }) => (routed ? label : "shared");
const expertScore = (expert) => model.expertScore(currentScorer(), state.layer, expert);
const expertRemoved = (budget, { start, size }) => model.countRemoved(plans[budget], state.layer, start, size);

/** For each column: its name, what it is sorted by, and what it shows. */
const EXPERT_COLUMNS = [
  [model.part, ({ start }) => start, (expert) => shortLabel(expert)],
  ...(model.hasHeads ? [] : [
    ["tokens", ({ tokens }) => tokens, ({ tokens }) => (tokens ? percent(tokens) : "dead")],
    ["weight", ({ weight }) => weight, ({ weight, routed }) => (routed ? significant(weight) : "–")],
  ]),
  ["score", expertScore, (expert) => percent(expertScore(expert), 2)],
  ["neurons", ({ size }) => size, ({ size }) => count(size)],
  ...BUDGETS.map((budget) => [budget, (expert) => expertRemoved(budget, expert) / expert.size, (expert) => expertFate(budget, expert)]),
];

/** How many neurons of an expert a budget keeps, or that it removes the expert. */
function expertFate(budget, expert) {
  const removed = expertRemoved(budget, expert);
  if (removed === expert.size) return verdict(true);
  return removed ? `−${count(removed)}` : verdict(false);
}

function showExperts() {
  const { layer } = state;
  if (!model.mixtures.length) return;
  byId("experts").hidden = !layer.experts;
  byId("all-experts").hidden = state.expert === null;
  byId("neurons-heading").textContent = state.expert ? `Neurons of ${model.part} ${state.expert.label}` : "Neurons of this layer";
  if (!layer.experts) return;
  const routed = layer.experts.filter((expert) => expert.routed);
  const dead = routed.filter(({ tokens }) => tokens === 0).length;
  const whole = model.isFixed || model.removesWhole;
  const gone = BUDGETS.map((budget) => {
    const removed = routed.map((expert) => expertRemoved(budget, expert));
    return `${budget} ${count(whole ? removed.filter((n, k) => n === routed[k].size).length : removed[0])}`;
  });
  const parts = model.hasHeads
    ? `${plural(routed.length, "group")}. Groups`
    : `${plural(routed.length, "expert")} that a router sends tokens to${dead ? `, ${count(dead)} of them dead` : ""}; ` +
      `${layer.experts.length - routed.length} shared. ${whole ? "Experts" : "Neurons"}`;
  byId("experts-lede").textContent =
    `${parts} removed${whole ? "" : " from each of them"} at ${amountText()}: ${gone.join(", ")}. ` +
    `Click ${model.hasHeads ? "a group" : "an expert"} to list its neurons alone.`;
  const table = byId("experts-table");
  const focused = table.contains(document.activeElement) ? document.activeElement.dataset : null;
  table.tHead.replaceChildren(element("tr", {}, ...EXPERT_COLUMNS.map(([name]) => sortHeading(name, state.expertSort))));
  const [, key] = EXPERT_COLUMNS.find(([name]) => name === state.expertSort.column);
  const sign = state.expertSort.descending ? -1 : 1;
  const keyed = layer.experts.map((expert, k) => [key(expert), k]).sort((a, b) => sign * (a[0] - b[0]) || a[1] - b[1]);
  const tabStop = state.expert ? layer.experts.indexOf(state.expert) : keyed[0][1];
  const body = keyed.map(([, k]) => {
    const expert = layer.experts[k];
    const button = element("button", { type: "button", tabIndex: k === tabStop ? 0 : -1, title: expert.label }, shortLabel(expert));
    button.dataset.expert = k;
    if (expert === state.expert) button.setAttribute("aria-current", "true");
    const cells = EXPERT_COLUMNS.slice(1).map(([, , show]) => element("td", {}, show(expert)));
    const row = element("tr", { class: expert === state.expert ? "chosen" : "" }, element("th", { scope: "row" }, button), ...cells);
    row.dataset.row = k;
    return row;
  });
  table.tBodies[0].replaceChildren(...body);
  if (focused?.column) table.tHead.querySelector(`[data-column="${focused.column}"]`).focus();
  if (focused?.expert) table.querySelector(`[data-expert="${focused.expert}"]`)?.focus();
}

/** A heading of a table that can be sorted. */
function sortHeading(name, sort) {
  const cell = element("th", { scope: "col" });
  const sorted = sort.column === name;
  if (sorted) cell.setAttribute("aria-sort", sort.descending ? "descending" : "ascending");
  const button = element("button", { type: "button" }, sorted ? `${name} ${sort.descending ? "↓" : "↑"}` : name);
  button.dataset.column = name;
  cell.append(button);
  return cell;
}

// --- the table of neurons

const place = (k) => model.place(currentScorer(), state.layer, k);
const removes = (budget, k) => plans[budget].removes(state.layer, k);
const numeric = (array) => [(k) => array[state.layer.start + k], (k) => significant(array[state.layer.start + k])];

/** For each column: its name, what it is sorted by, and what it shows. Scores are sorted by the library's order. */
const COLUMNS = [
  ["neuron", (k) => k, (k) => String(k)],
  ["place", place, (k) => count(place(k))],
  ["× mean", (k) => -place(k), (k) => significant(model.relativeScore(currentScorer(), state.layer, k))],
  ["activation", ...numeric(model.activation)],
  ["strength in", ...numeric(model.inStrength)],
  ["strength out", ...numeric(model.outStrength)],
  ...BUDGETS.map((budget) => [budget, (k) => Number(removes(budget, k)), (k) => verdict(removes(budget, k))]),
];
const EXPERT_COLUMN = [model.part, (k) => k, (k) => shortLabel(model.expertOf(state.layer, k))];
/** The columns of the open layer: in a mixture each neuron has an expert, in an attention a group of heads. */
const columns = () => (state.layer.experts ? [COLUMNS[0], EXPERT_COLUMN, ...COLUMNS.slice(1)] : COLUMNS);
const FILTERS = {
  all: () => true,
  kept: (k) => !removes(state.budget, k),
  removed: (k) => removes(state.budget, k),
  differ: (k) => removes("local", k) !== removes("global", k),
};

function sortNeurons() {
  const [, key] = columns().find(([name]) => name === state.sort.column) ?? COLUMNS[1];
  const { start, size } = state.expert ?? { start: 0, size: state.layer.size };
  rows = Array.from({ length: size }, (_, k) => start + k).filter(FILTERS[state.filter]);
  const keys = new Float64Array(state.layer.size);
  for (const k of rows) keys[k] = key(k);
  const sign = state.sort.descending ? -1 : 1;
  rows.sort((a, b) => sign * (keys[a] - keys[b]) || a - b);
}

function pages() {
  return Math.max(1, Math.ceil(rows.length / PAGE_ROWS));
}

function showNeurons() {
  state.page = Math.min(state.page, pages() - 1);
  const table = byId("neurons");
  const focused = table.contains(document.activeElement) ? document.activeElement.dataset : null;
  const head = columns().map(([name]) => sortHeading(name, state.sort));
  table.tHead.replaceChildren(element("tr", {}, ...head));
  const first = state.page * PAGE_ROWS;
  const visible = rows.slice(first, first + PAGE_ROWS);
  const tabStop = visible.includes(state.neuron) ? state.neuron : visible[0];
  const body = visible.map((k) => {
    const button = element("button", { type: "button", tabIndex: k === tabStop ? 0 : -1 }, String(k));
    button.dataset.neuron = k;
    const cells = columns().slice(1).map(([, , show]) => element("td", {}, show(k)));
    const row = element("tr", { class: k === state.neuron ? "chosen" : "" }, element("th", { scope: "row" }, button), ...cells);
    if (k === state.neuron) button.setAttribute("aria-current", "true");
    row.dataset.row = k;
    return row;
  });
  table.tBodies[0].replaceChildren(...body);
  const last = Math.min(first + PAGE_ROWS, rows.length);
  byId("page-shown").textContent = rows.length
    ? `${count(first + 1)}–${count(last)} of ${plural(rows.length, "neuron")}`
    : "no neuron";
  for (const id of ["page-first", "page-previous"]) byId(id).disabled = state.page === 0;
  for (const id of ["page-next", "page-last"]) byId(id).disabled = state.page >= pages() - 1;
  // The row that had the keyboard focus was replaced: its successor gets the focus.
  if (focused?.column) table.tHead.querySelector(`[data-column="${focused.column}"]`).focus();
  if (focused?.neuron) {
    (table.querySelector(`[data-neuron="${focused.neuron}"]`) ?? table.querySelector("tbody button"))?.focus();
  }
}

/** Sort and filter the neurons again, and show the first page of them. */
function showFirstNeurons() {
  state.page = 0;
  sortNeurons();
  showNeurons();
}

function turnTo(page) {
  state.page = Math.min(Math.max(page, 0), pages() - 1);
  showNeurons();
}

/** Turn to the page of the table that holds a neuron. */
function turnToNeuron(neuron) {
  const at = rows.indexOf(neuron);
  if (at >= 0) state.page = Math.floor(at / PAGE_ROWS);
}

