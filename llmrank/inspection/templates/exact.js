// The arithmetic of pruning, and where a neuron is found. Nothing here touches the page.
// What goes is decided by orders that the library computed: the page only compares positions with
// counts, so the sets it shows are the library's, not those of scores rounded for display.

const ARRAYS = { float32: Float32Array, uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array };

function decode({ dtype, data }) {
  const text = atob(data);
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k += 1) bytes[k] = text.charCodeAt(k);
  return new ARRAYS[dtype](bytes.buffer);
}

/** Python's round(): halves go to the even number. The fraction of a double is exact, so is this. */
function roundHalfEven(x) {
  const below = Math.floor(x);
  const rest = x - below;
  if (rest !== 0.5) return rest < 0.5 ? below : below + 1;
  return below % 2 === 0 ? below : below + 1;
}

/** Numbers of one inspection; arrays over all neurons run through the layers in order. */
class Model {
  #data;
  #scorers = new Map();

  constructor(data) {
    this.#data = data;
    this.minKeep = data.min_keep;
    this.asked = data.asked;
    this.names = Object.keys(data.scorers);
    let start = 0;
    this.layers = data.layers.map((entry, number) => {
      const layer = { ...entry, number, start };
      start += entry.size;
      return layer;
    });
    this.total = start;
    this.activation = decode(data.facts.activation);
    this.inStrength = decode(data.facts.in_strength);
    this.outStrength = decode(data.facts.out_strength);
    this.edges = new Edges(data.edges, this.layers);
  }

  /** Arrays of a scorer, decoded at first use. */
  scorer(name) {
    if (!this.#scorers.has(name)) {
      const entry = this.#data.scorers[name];
      this.#scorers.set(name, {
        ...entry,
        name,
        scores: decode(entry.scores),
        local: decode(entry.local),
        global: decode(entry.global),
        ties: decode(entry.ties),
        orders: new Map(),
        ascending: new Map(),
      });
    }
    return this.#scorers.get(name);
  }

  /** Neurons of a layer, highest score first. */
  order(scorer, layer) {
    if (!scorer.orders.has(layer.number)) {
      const order = new Uint32Array(layer.size);
      for (let k = 0; k < layer.size; k += 1) order[layer.size - 1 - scorer.local[layer.start + k]] = k;
      scorer.orders.set(layer.number, order);
    }
    return scorer.orders.get(layer.number);
  }

  /** Global positions of the neurons of a layer, lowest score first: ascending. */
  globally(scorer, layer) {
    if (!scorer.ascending.has(layer.number)) {
      const ascending = new Uint32Array(layer.size);
      for (let k = 0; k < layer.size; k += 1) ascending[scorer.local[layer.start + k]] = scorer.global[layer.start + k];
      scorer.ascending.set(layer.number, ascending);
    }
    return scorer.ascending.get(layer.number);
  }

  /** Share of the layer's score, relative to an equal share: 1 is the mean. */
  relative(scorer, layer, neuron) {
    return scorer.scores[layer.start + neuron] * layer.size;
  }
}

/** Strongest edges of the neurons; of the highest ones only, where all would be too many. */
class Edges {
  #rows = null;

  constructor(entry, layers) {
    this.top = entry.top;
    this.starts = [];
    let start = 0;
    for (const held of entry.held) {
      this.starts.push(start);
      start += held;
    }
    if (entry.neurons !== null) {
      const neurons = decode(entry.neurons);
      this.#rows = layers.map(({ number }) => {
        const first = this.starts[number];
        return new Map(Array.from(neurons.subarray(first, first + entry.held[number]), (neuron, row) => [neuron, row]));
      });
    }
    this.in = { nodes: decode(entry.in_nodes), shares: decode(entry.in_shares) };
    this.out = { nodes: decode(entry.out_nodes), shares: decode(entry.out_shares) };
  }

  /** [{node, share}] strongest first, or null where the page does not hold this neuron's edges. */
  of(layer, neuron, side) {
    const row = this.#rows === null ? neuron : this.#rows[layer.number].get(neuron);
    if (row === undefined) return null;
    const { nodes, shares } = this[side];
    const found = [];
    for (let k = (this.starts[layer.number] + row) * this.top, end = k + this.top; k < end; k += 1) {
      if (shares[k] > 0) found.push({ node: nodes[k], share: shares[k] });
    }
    return found;
  }
}

// An amount is {percent} from the slider, or "asked": what the inspection was asked for, whatever it was.
// A budget is {name: "local" or "global", multiple}: kept widths are rounded to that multiple.

function localCount(model, amount, layer) {
  if (amount === "asked") return model.asked.local[layer.number];
  return roundHalfEven((amount.percent / 100) * layer.size);
}

function globalCount(model, amount) {
  if (amount === "asked") return model.asked.global;
  return Math.floor((amount.percent * model.total + 99) / 100);
}

/** A width to keep, rounded as the library rounds it. */
function roundWidth(kept, total, multiple, minKeep) {
  let rounded = multiple * roundHalfEven(kept / multiple);
  if (rounded < minKeep) rounded = multiple * Math.ceil(minKeep / multiple);
  return Math.min(rounded, total);
}

/** How many values of an ascending array are below a limit. */
function below(ascending, limit) {
  let low = 0;
  let high = ascending.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ascending[middle] < limit) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** How many neurons of a layer a budget removes, refusals aside. */
function removedCount(model, scorer, amount, budget, layer) {
  const gone =
    budget.name === "local"
      ? localCount(model, amount, layer)
      : below(model.globally(scorer, layer), globalCount(model, amount));
  if (budget.multiple === 1) return gone;
  return layer.size - roundWidth(layer.size - gone, layer.size, budget.multiple, model.minKeep);
}

/** Why the library refuses an amount, or "": every layer keeps some neurons. */
function refusal(model, amount, budget) {
  const narrow = model.layers.find((layer) => layer.size < model.minKeep);
  if (narrow) return `${narrow.name} has only ${narrow.size} neurons`;
  if (budget.name === "local") {
    const kept = (layer) => layer.size - localCount(model, amount, layer);
    const short = model.layers.find((layer) => kept(layer) < model.minKeep);
    return short ? `${short.name} would keep ${Math.max(kept(short), 0)} of ${short.size} neurons` : "";
  }
  const left = model.total - globalCount(model, amount);
  if (left >= model.minKeep * model.layers.length) return "";
  return `it would leave ${Math.max(left, 0)} neurons for ${model.layers.length} layers`;
}

/**
 * What a budget removes: {counts by layer, total, refusal, removes(layer, neuron)}.
 * Within a layer the lowest go, whatever the budget. Where the library refuses the amount so does the plan: nothing goes.
 */
function prune(model, scorer, amount, budget) {
  const refused = refusal(model, amount, budget);
  const counts = model.layers.map((layer) => (refused ? 0 : removedCount(model, scorer, amount, budget, layer)));
  return {
    counts,
    total: counts.reduce((sum, n) => sum + n, 0),
    refusal: refused,
    removes: (layer, neuron) => scorer.local[layer.start + neuron] < counts[layer.number],
  };
}

/** The smallest whole percentage at which a budget removes a neuron; null up to the end of the slider. */
function goesAt(model, scorer, layer, neuron, budget, last) {
  const position = scorer.local[layer.start + neuron];
  for (let percent = 0; percent <= last; percent += 1) {
    const amount = { percent };
    if (removedCount(model, scorer, amount, budget, layer) > position) {
      return refusal(model, amount, budget) ? null : percent;
    }
  }
  return null;
}

/** Share of the layer's neurons with a lower score, those with the same one (itself too) counted half. */
function percentile(scorer, layer, neuron) {
  const tied = (position) => {
    const bit = layer.start + position;
    return (scorer.ties[bit >> 3] >> (bit & 7)) & 1;
  };
  let low = scorer.local[layer.start + neuron];
  let high = low;
  while (tied(low)) low -= 1;
  while (high + 1 < layer.size && tied(high + 1)) high += 1;
  return (low + (high - low + 1) / 2) / layer.size;
}

/** Scores on either side of the cut in one layer: {removed: highest that goes, kept: lowest that stays}, or null. */
function cut(model, scorer, layer, plan) {
  const order = model.order(scorer, layer);
  const width = layer.size - plan.counts[layer.number];
  const score = (place) => (place >= 0 && place < layer.size ? scorer.scores[layer.start + order[place]] : null);
  return { removed: score(width), kept: score(width - 1) };
}

/** A neuron's score over the score at the cut, as the library's margin: NaN where nothing lies beyond the cut. */
function margin(model, scorer, layer, neuron, plan) {
  const { removed, kept } = cut(model, scorer, layer, plan);
  const beyond = plan.removes(layer, neuron) ? kept : removed;
  return beyond === null ? NaN : scorer.scores[layer.start + neuron] / beyond;
}

/** Share of the neurons that one plan keeps which the other keeps too, over some layers. */
function overlap(layers, one, other) {
  let kept = 0;
  let both = 0;
  for (const layer of layers) {
    for (let neuron = 0; neuron < layer.size; neuron += 1) {
      if (one.removes(layer, neuron)) continue;
      kept += 1;
      if (!other.removes(layer, neuron)) both += 1;
    }
  }
  return kept ? both / kept : NaN;
}

// --- finding a neuron by what people type

const WHOLE = /^\d+$/;

/** Layers whose name contains the text as whole parts: "layers.3" is in "model.layers.3.mlp", not in "layers.30". */
function layersNamed(model, text) {
  const exact = model.layers.filter((layer) => layer.name === text);
  if (exact.length) return exact;
  const wanted = text.toLowerCase();
  const letter = /[\p{L}\p{N}_]/u;
  return model.layers.filter(({ name }) => {
    const where = name.toLowerCase();
    for (let at = where.indexOf(wanted); at >= 0; at = where.indexOf(wanted, at + 1)) {
      const before = where[at - 1] ?? "";
      const after = where[at + wanted.length] ?? "";
      if (!letter.test(before) && !letter.test(after)) return true;
    }
    return false;
  });
}

/** {layer, neuron} (neuron null where only a layer was named) or {error}. */
function findNeuron(model, text, open) {
  const query = text.trim();
  if (!query) return { error: `Type a layer and a neuron, such as ${Math.min(3, model.layers.length - 1)}:17.` };
  if (WHOLE.test(query)) return check(open, Number(query));
  const named = layersNamed(model, query);
  if (named.length === 1) return { layer: named[0], neuron: null };
  const numbered = /^layer\s+(\d+)$/iu.exec(query);
  if (numbered && Number(numbered[1]) < model.layers.length) {
    return { layer: model.layers[Number(numbered[1])], neuron: null };
  }
  const parts = /^(.*?)(?:\s*[:#/,]\s*|\s+(?:neuron\s*)?#?\s*)(\d+)\]?$/isu.exec(query);
  const where = (parts ? parts[1] : query).replace(/[\s:#/,]+$/u, "").replace(/^layer\s+(?=\d+$)/iu, "");
  const neuron = parts ? Number(parts[2]) : null;
  const layers = WHOLE.test(where) ? model.layers.slice(Number(where), Number(where) + 1) : layersNamed(model, where);
  if (layers.length > 1) {
    const names = layers.slice(0, 3).map((layer) => layer.name);
    return { error: `${layers.length} layers match: ${names.join(", ")}${layers.length > 3 ? ", …" : ""}. Say more of the name.` };
  }
  if (!layers.length) return { error: `No layer “${where}”; there are 0 to ${model.layers.length - 1}, or their names.` };
  return neuron === null ? { layer: layers[0], neuron } : check(layers[0], neuron);
}

function check(layer, neuron) {
  if (neuron < layer.size) return { layer, neuron };
  return { error: `Layer ${layer.number} has neurons 0 to ${layer.size - 1}; there is no ${neuron}.` };
}
