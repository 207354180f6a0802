// The meanings of neurons, the search by token, and what the pruned model predicts worse.

// Entries of one list of the search.
const MOST_FOUND = 100;

/** A text with its line breaks and tabs as arrows, so that it stays in its line. */
function visible(text) {
  return text.replace(/\r/gu, "").replace(/\n/gu, "↵").replace(/\t/gu, "⇥");
}

/** A token as a button that searches for it. */
function tokenButton(token) {
  const button = element("button", { type: "button", class: "token", title: "Find neurons by this token" }, visible(token));
  button.dataset.token = token;
  return button;
}

/** A piece of text with one token marked, without the space in front of it. Long runs of spaces around it are shortened. */
function markedText({ before, token, after }) {
  const shortened = (text) => visible(text).replace(/ {3,}/gu, "  ");
  const space = token.trim() ? /^ */u.exec(token)[0] : "";
  const marked = element("mark", {}, visible(token.slice(space.length)));
  return element("span", { class: "context" }, shortened(before + space), marked, shortened(after));
}

/** The contexts and the tokens of a neuron. */
function meaningOf(layer, neuron) {
  const meaning = model.meanings.of(layer, neuron);
  if (meaning === null) return element("p", { class: "meaning muted" }, "The page does not hold the contexts of this neuron.");
  const contexts = meaning.contexts.map((each) =>
    element("li", {}, element("span", { class: "activation" }, signed(each.activation)), markedText(each)),
  );
  const tokens = [
    ["Promotes", meaning.promoted],
    ["Demotes", meaning.demoted],
  ].filter(([, texts]) => texts.length);
  return element(
    "div",
    { class: "meaning" },
    element("h4", {}, contexts.length ? "Most active at the marked tokens" : "Not active at any token but the first of a sequence"),
    element("ol", { class: "contexts" }, ...contexts),
    ...tokens.map(([title, texts]) =>
      element("p", { class: "tokens" }, element("span", { class: "muted" }, `${title} (logit lens) `), ...texts.map(tokenButton)),
    ),
    ...(tokens.length ? [] : [element("p", { class: "muted" }, model.meanings.withoutLens ?? "No logit lens: the layer does not write to the head.")]),
  );
}

function signed(value) {
  return value > 0 ? `+${significant(value)}` : significant(value).replace("-", "−");
}

// --- the search by token

/** Show the neurons that a text leads to; state.token holds it. */
function showFound() {
  if (!model.meanings || state.token === null) return;
  const tokens = model.meanings.named(state.token);
  const lists = byId("token-lists");
  const result = byId("token-result");
  if (!tokens.size) {
    const near = model.meanings.containing(state.token, 12);
    result.textContent = `“${visible(state.token)}” is no token of the calibration text, and no neuron promotes or demotes it.${near.length ? " Tokens that contain it:" : ""}`;
    lists.replaceChildren(element("p", { class: "tokens" }, ...near.map(tokenButton)));
    return;
  }
  const found = [
    ["Fire on it", model.meanings.activeAt(tokens), ({ times, activation }) => `${times} of ${model.meanings.k}, ${signed(activation)}`],
    ["Promote it", model.meanings.writing(tokens, "promoted"), ({ place }) => `place ${place}`],
    ["Demote it", model.meanings.writing(tokens, "demoted"), ({ place }) => `place ${place}`],
  ];
  const counts = found.map(([title, neurons]) => `${title.toLowerCase().replace(" it", "")} ${count(neurons.length)}`);
  result.textContent =
    `Of “${visible(state.token)}”: ${counts.join(", ")} neurons. Beside each stands in how many of its contexts it fires on the ` +
    "token, with the largest activation there, or the place of the token among those that it promotes or demotes.";
  lists.replaceChildren(...found.map(([title, neurons, words]) => foundList(title, neurons, words)));
}

function foundList(title, neurons, words) {
  const entries = neurons.slice(0, MOST_FOUND).map((each) => {
    const removed = plans[state.budget].removes(each.layer, each.neuron);
    const button = element("button", { type: "button", class: "found" }, `${each.layer.number}:${each.neuron}`);
    button.dataset.layer = each.layer.number;
    button.dataset.neuron = each.neuron;
    return element("li", {}, button, element("span", { class: "muted" }, ` ${words(each)} `), verdict(removed));
  });
  const more = neurons.length - entries.length;
  return element(
    "div",
    {},
    element("h4", {}, `${title}: ${plural(neurons.length, "neuron")}`),
    element("ol", {}, ...entries),
    ...(more > 0 ? [element("p", { class: "muted" }, `and ${count(more)} more`)] : []),
  );
}

function searchToken(text) {
  state.token = text;
  byId("token-query").value = text.replaceAll("\n", "\\n").replaceAll("\t", "\\t");
  showFound();
}

function listenToMeanings() {
  byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = byId("token-query").value;
    // A reader types a line break as \n. A token may itself be a backslash and an n, so only what is typed is read in this way.
    if (text) searchToken(text.replaceAll("\\n", "\n").replaceAll("\\t", "\t"));
  });
  byId("token-lists").addEventListener("click", (event) => {
    const { layer, neuron } = event.target.dataset;
    if (neuron === undefined) return;
    openLayer(model.layers[Number(layer)], Number(neuron));
    byId("neuron").scrollIntoView({ block: "nearest" });
  });
  for (const id of ["neuron", "token-lists"]) {
    byId(id).addEventListener("click", (event) => {
      const { token } = event.target.dataset;
      if (token === undefined) return;
      searchToken(token);
      byId("token-search").scrollIntoView({ block: "nearest" });
    });
  }
}

// --- what the pruned model predicts worse

/** Show the losses by kind of token and the worst examples. They belong to the amount of the inspection, whatever the slider. */
function showChanges() {
  const { all, kinds, worst } = data.changes;
  byId("changes-caption").textContent =
    `The masked model with ${data.amounts[data.inspected.amount]} removed by ${data.scorer}, ${data.budget}, without repair, on the ` +
    `calibration text. The mean loss of the ${count(all.change.count)} predicted tokens goes from ${all.before.toFixed(3)} to ` +
    `${all.after.toFixed(3)} nats. The slider does not change this.`;
  const head = ["predicted token", "tokens", "before", "after", "change", "of total"];
  const rows = Object.entries(kinds).flatMap(([, named], group) =>
    Object.entries(named).map(([name, kind], k) =>
      element(
        "tr",
        { class: group && !k ? "group" : "" },
        element("th", { scope: "row", class: "words" }, name),
        ...[
          count(kind.change.count),
          kind.before.toFixed(2),
          kind.after.toFixed(2),
          `${kind.change.value < 0 ? "−" : "+"}${Math.abs(kind.change.value).toFixed(2)}` +
            (kind.change.error === null ? "" : ` ± ${kind.change.error.toFixed(2)}`),
          kind.share_of_change === null ? "–" : percent(kind.share_of_change),
        ].map((words) => element("td", {}, words)),
      ),
    ),
  );
  const table = byId("changes").querySelector("table");
  table.tHead.append(element("tr", {}, ...head.map((name, k) => element("th", { scope: "col", class: k ? "" : "words" }, name))));
  table.tBodies[0].append(...rows);
  byId("worst").append(
    ...worst.map((each) =>
      element(
        "li",
        {},
        markedText(each.context),
        element("span", { class: "muted" }, `probability ${probability(each.before)} before, ${probability(each.after)} after; predicted before `),
        element("span", { class: "token" }, visible(each.predicted_before)),
        element("span", { class: "muted" }, ` (${probability(each.probability_before)}), after `),
        element("span", { class: "token" }, visible(each.predicted_after)),
        element("span", { class: "muted" }, ` (${probability(each.probability_after)})`),
      ),
    ),
  );
}

function probability(share) {
  return share >= 1e-4 ? percent(share, share >= 1e-3 ? 1 : 2) : "< 0.01 %";
}
