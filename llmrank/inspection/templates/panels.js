// What is shown of the state: counts, tables, facts. Every function reads the state and writes one part of the page.

const PAGE_ROWS = 20;
// Screen readers should hear where the slider came to rest, not every step on the way.
const SPOKEN_AFTER = 400;

const byId = (id) => document.getElementById(id);

/** An element; strings become text, never markup, so that names from a model cannot do anything. */
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

/** Terms and values of a description list, one after the other. */
function flat(pairs) {
  return pairs.flatMap(([term, value]) => [element("dt", {}, term), element("dd", {}, value)]);
}

function scorer() {
  return model.scorer(state.scorer);
}

/** A budget with the widths that the page was told to round to. */
function rounded(name) {
  return { name, multiple: state.multiple };
}

/** What a budget removes by the scores of any scorer at the present amount. */
function planOf(name, budget) {
  const key = `${budget} ${name}`;
  if (!planned.has(key)) planned.set(key, prune(model, model.scorer(name), state.amount, rounded(budget)));
  return planned.get(key);
}

function verdict(gone) {
  return element("span", { class: gone ? "state gone" : "state" }, gone ? "removed" : "kept");
}

function amountText() {
  return state.amount === "asked" ? model.asked.label : `${state.amount.percent} %`;
}

function plural(n, noun) {
  return `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
}

// --- what never changes

function showProvenance() {
  byId("provenance").append(
    ...[
      ["topology", data.topology],
      ["asked for", `${data.scorer}, ${data.pruner}, ${model.asked.label}`],
      ["neurons", `${count(model.total)} in ${plural(model.layers.length, "layer")}`],
      ["graph", `${count(data.graph.nodes)} nodes, ${count(data.graph.edges)} edges`],
      ["calibration", data.calibration],
    ].map((pair) => element("div", {}, ...flat([pair]))),
  );
  byId("notes").hidden = data.notes.length === 0;
  byId("notes").textContent = data.notes.join(" ");
  byId("scorer").append(...model.names.map((name) => element("option", { value: name }, name)));
  const multiples = [...new Set([1, 8, 64, 128, data.multiple_of])].sort((a, b) => a - b);
  byId("multiple").append(...multiples.map((n) => element("option", { value: n }, n === 1 ? "any width" : `multiples of ${n}`)));
  byId("layer-choice").append(
    ...model.layers.map((layer) => element("option", { value: layer.number }, `${layer.number} · ${layer.name}`)),
  );
  byId("as-asked").textContent = `back to ${model.asked.label}`;
  byId("query").placeholder = `such as ${Math.min(3, model.layers.length - 1)}:17`;
  byId("normalize").textContent = data.normalize;
  byId("min-keep").textContent = plural(data.min_keep, "neuron");
  byId("edge-scorer").textContent = data.scorer;
  byId("versions").textContent = Object.entries(data.versions)
    .map(([name, version]) => `${name} ${version}`)
    .join(" · ");
}

// --- counts

let spoken = 0;

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
      `${count(model.total - total)}; ${count(plans[state.budget].counts[state.layer.number])} go in the open layer.`;
  clearTimeout(spoken);
  spoken = setTimeout(() => (byId("status").textContent = sentence), SPOKEN_AFTER);
  const slider = byId("amount");
  slider.value = state.amount === "asked" ? Math.round(100 * model.asked.share) : state.amount.percent;
  slider.setAttribute("aria-valuetext", `${amountText()}, ${count(total)} neurons removed`);
  byId("amount-shown").textContent = amountText();
  const asked = state.amount === "asked" || state.amount.percent === model.asked.percent;
  byId("as-asked").disabled = asked;
}

// --- all layers

const LAYER_COLUMNS = ["layer", "neurons", "local", "global", "kept", "effective", "Gini", "top 1 %"];

function showLayers() {
  const { counts } = plans[state.budget];
  const shown = scorer();
  byId("overview-caption").textContent =
    `Scores by ${state.scorer}. What lies right of the line goes at ${amountText()} with the ${state.budget} budget; ` +
    "click a layer to open it.";
  const other = state.budget === "local" ? "global" : "local";
  const key = (kind, text) => element("span", {}, element("i", { class: kind }), text);
  byId("overview-legend").replaceChildren(
    key("", `${state.budget} cut`),
    key("other", `${other} cut`),
    key("veil", "removed"),
  );
  const head = element("tr", {}, ...LAYER_COLUMNS.map((name) => element("th", { scope: "col" }, name)));
  byId("layers").tHead.replaceChildren(head);
  // The rows stay and their cells change: a focused button must not be taken away under the keyboard.
  const body = byId("layers").tBodies[0];
  if (!body.rows.length) {
    for (const layer of model.layers) {
      const open = element("button", { type: "button", tabIndex: -1, title: layer.name }, String(layer.number));
      const cells = LAYER_COLUMNS.slice(1).map(() => element("td"));
      const row = element("tr", {}, element("th", { scope: "row" }, open), ...cells);
      row.dataset.row = layer.number;
      body.append(row);
    }
  }
  model.layers.forEach((layer, k) => {
    const row = body.rows[k];
    const open = layer === state.layer;
    const kept = layer.size - counts[k];
    row.className = open ? "chosen" : "";
    const button = row.querySelector("button");
    button.tabIndex = open ? 0 : -1;
    if (open) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    const filled = element("i");
    filled.style.width = `${(100 * kept) / layer.size}%`;
    const bar = element("span", { class: "bar", "aria-hidden": "true" }, filled);
    const cells = row.cells;
    cells[1].textContent = count(layer.size);
    cells[2].textContent = `−${count(plans.local.counts[k])}`;
    cells[3].textContent = `−${count(plans.global.counts[k])}`;
    cells[4].replaceChildren(count(kept), bar);
    cells[5].textContent = count(Math.round(shown.effective[k]));
    cells[6].textContent = shown.gini[k].toFixed(2);
    cells[7].textContent = percent(shown.top[k]);
  });
}

function showAgreement() {
  const box = byId("agreement");
  box.hidden = model.names.length < 2;
  if (!box.open || box.hidden) return;
  const own = plans[state.budget];
  byId("agreement-caption").textContent =
    `Of the neurons that ${state.scorer} keeps (${state.budget}, ${amountText()}), the share that the others keep too.`;
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
        const all = overlap(model.layers, own, theirs);
        return element(
          "tr",
          {},
          element("th", { scope: "row", class: "words" }, name),
          element("td", {}, share(all)),
          element("td", {}, share(overlap([state.layer], own, theirs))),
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
  const gone = BUDGETS.map((budget) => `${budget} ${count(plans[budget].counts[layer.number])}`);
  const differ = Array.from({ length: layer.size }, (_, k) => k).filter(
    (k) => plans.local.removes(layer, k) !== plans.global.removes(layer, k),
  ).length;
  byId("layer-caption").textContent =
    `${plural(layer.size, "neuron")}. Removed at ${amountText()}: ${gone.join(", ")}; ` +
    `the two differ on ${plural(differ, "neuron")}.`;
}

function showNeuron() {
  const { layer } = state;
  const neuron = state.preview ?? state.neuron ?? model.order(scorer(), layer)[0];
  byId("neuron-heading").textContent = `Neuron ${layer.number}:${neuron}`;
  const shown = scorer();
  const at = layer.start + neuron;
  const place = layer.size - shown.local[at];
  const facts = [
    ["score", significant(shown.scores[at])],
    ["× mean", significant(model.relative(shown, layer, neuron))],
    ["place", `${count(place)} of ${count(layer.size)}`],
    ["percentile", percent(percentile(shown, layer, neuron), 2)],
    ["activation", significant(model.activation[at])],
    ["strength in", significant(model.inStrength[at])],
    ["strength out", significant(model.outStrength[at])],
  ];
  byId("neuron-facts").replaceChildren(
    element("dl", {}, ...flat(facts)),
    neighbours(layer, neuron, "in", "arrives from"),
    neighbours(layer, neuron, "out", "leaves to"),
    verdicts(layer, neuron),
  );
}

/** The strongest edges on one side of a neuron, with the share each carries. */
function neighbours(layer, neuron, side, title) {
  const near = layer[side];
  if (!near) return element("div", {}, element("h4", {}, `${title}: no layer`));
  const heading = element("h4", {}, `${title} `, element("span", { class: "name" }, near.name));
  const found = model.edges.of(layer, neuron, side);
  let pairs = [["–", "not in this page; see the note at the top"]];
  if (found !== null) {
    pairs = found.length ? found.map(({ node, share }) => [`node ${node}`, percent(share, 2)]) : [["–", "no edge"]];
  }
  return element("div", {}, heading, element("dl", {}, ...flat(pairs)));
}

/** What every scorer says of one neuron under both budgets. */
function verdicts(layer, neuron) {
  const head = ["scorer", "× mean", "place", "local", "margin", "goes at", "global", "margin", "goes at"];
  const body = model.names.map((name) => {
    const theirs = model.scorer(name);
    const at = layer.start + neuron;
    const cells = [significant(model.relative(theirs, layer, neuron)), count(layer.size - theirs.local[at])];
    for (const budget of BUDGETS) {
      const plan = planOf(name, budget);
      const gone = plan.removes(layer, neuron);
      const ratio = margin(model, theirs, layer, neuron, plan);
      const when = goesAt(model, theirs, layer, neuron, rounded(budget), SLIDER_END);
      cells.push(
        verdict(gone),
        ratio === Infinity ? "∞" : Number.isNaN(ratio) ? "–" : significant(ratio),
        when === null ? `> ${SLIDER_END} %` : `${when} %`,
      );
    }
    const row = [element("th", { scope: "row", class: "words" }, name), ...cells.map((cell) => element("td", {}, cell))];
    return element("tr", { class: name === state.scorer ? "chosen" : "" }, ...row);
  });
  const columns = head.map((name, k) => element("th", { scope: "col", class: k ? "" : "words" }, name));
  const table = element(
    "table",
    {},
    element("caption", { class: "unseen" }, "What every scorer says of this neuron"),
    element("thead", {}, element("tr", {}, ...columns)),
    element("tbody", {}, ...body),
  );
  const box = element("div", { class: "verdicts scroll", tabIndex: 0, role: "region" }, table);
  box.setAttribute("aria-label", "What every scorer says of this neuron");
  return box;
}

// --- the table of neurons

const stacked = (k) => state.layer.start + k;
const goes = (budget) => (k) => plans[budget].removes(state.layer, k);
const numeric = (array) => [(k) => array[stacked(k)], (k) => significant(array[stacked(k)])];

/** Columns: what they are called, what they are sorted by, what they show. Scores are sorted by the library's order. */
const COLUMNS = [
  ["neuron", (k) => k, (k) => String(k)],
  ["place", (k) => -scorer().local[stacked(k)], (k) => count(state.layer.size - scorer().local[stacked(k)])],
  ["× mean", (k) => scorer().local[stacked(k)], (k) => significant(model.relative(scorer(), state.layer, k))],
  ["activation", ...numeric(model.activation)],
  ["strength in", ...numeric(model.inStrength)],
  ["strength out", ...numeric(model.outStrength)],
  ...BUDGETS.map((budget) => [budget, (k) => Number(goes(budget)(k)), (k) => verdict(goes(budget)(k))]),
];
const FILTERS = {
  all: () => true,
  kept: (k) => !goes(state.budget)(k),
  removed: (k) => goes(state.budget)(k),
  differ: (k) => goes("local")(k) !== goes("global")(k),
};

function sortNeurons() {
  const [, key] = COLUMNS.find(([name]) => name === state.sort.column);
  rows = Array.from({ length: state.layer.size }, (_, k) => k).filter(FILTERS[state.filter]);
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
  const head = COLUMNS.map(([name]) => {
    const cell = element("th", { scope: "col" });
    const sorted = state.sort.column === name;
    if (sorted) cell.setAttribute("aria-sort", state.sort.descending ? "descending" : "ascending");
    const button = element("button", { type: "button" }, sorted ? `${name} ${state.sort.descending ? "↓" : "↑"}` : name);
    button.dataset.column = name;
    cell.append(button);
    return cell;
  });
  table.tHead.replaceChildren(element("tr", {}, ...head));
  const first = state.page * PAGE_ROWS;
  const visible = rows.slice(first, first + PAGE_ROWS);
  const stop = visible.includes(state.neuron) ? state.neuron : visible[0];
  const body = visible.map((k) => {
    const button = element("button", { type: "button", tabIndex: k === stop ? 0 : -1 }, String(k));
    button.dataset.neuron = k;
    const cells = COLUMNS.slice(1).map(([, , show]) => element("td", {}, show(k)));
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
  // The row in focus was rebuilt: give the focus back to its successor.
  if (focused?.column) table.tHead.querySelector(`[data-column="${focused.column}"]`).focus();
  if (focused?.neuron) {
    (table.querySelector(`[data-neuron="${focused.neuron}"]`) ?? table.querySelector("tbody button"))?.focus();
  }
}

function turnTo(page) {
  state.page = Math.min(Math.max(page, 0), pages() - 1);
  showNeurons();
}

/** Bring the page of the table that holds a neuron. */
function reveal(neuron) {
  const at = rows.indexOf(neuron);
  if (at >= 0) state.page = Math.floor(at / PAGE_ROWS);
}

