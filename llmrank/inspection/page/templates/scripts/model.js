// The data of the inspection, and what can be looked up in them. Nothing in this file reads or changes the page.
// The library computed in which order pruning removes the neurons of a layer, and how many of them at each amount. This file
// only looks that up, so the neurons that the page shows as removed are those that the library removes. Neurons are removed in
// units: one by one or, in a mixture of experts, one of every expert, or all of an expert, or all of a group of heads. The groups of
// heads of an attention are shown as the experts of a mixture are, and are called so in the code.

const ARRAYS = { float32: Float32Array, uint16: Uint16Array, uint32: Uint32Array };

function decode({ dtype, data }) {
  const text = atob(data);
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k += 1) bytes[k] = text.charCodeAt(k);
  return new ARRAYS[dtype](bytes.buffer);
}

/** The data of one inspection. Arrays of neurons run through all layers in order. */
class Model {
  #data;
  #scorers = new Map();
  #localRemovals;

  constructor(data) {
    this.#data = data;
    this.names = Object.keys(data.scorers);
    let start = 0;
    this.layers = data.layers.map((entry, number) => {
      const layer = { ...entry, number, start };
      start += entry.size;
      return layer;
    });
    this.total = start;
    this.mixtures = this.layers.filter((layer) => layer.experts);
    this.part = data.part;
    this.hasHeads = data.part === "group";
    // Where neurons and experts are removed together, the page holds one amount, and only whether it removes a neuron.
    this.isFixed = data.targets.length > 1;
    // Whether only whole experts, or groups of heads, are removed.
    this.removesWhole = this.hasHeads || (!this.isFixed && data.targets[0] === "experts");
    // The index of the units that each neuron belongs to; -1 for neurons that are never removed.
    this.unitsOf = new Int32Array(start).fill(-1);
    data.units.forEach((entry, k) => {
      const first = this.layers[entry.layer].start + entry.start;
      this.unitsOf.fill(k, first, first + entry.size);
    });
    this.activation = decode(data.facts.activation);
    this.inStrength = decode(data.facts.in_strength);
    this.outStrength = decode(data.facts.out_strength);
    this.edges = new Edges(data.edges, this.layers);
    this.meanings = data.meanings ? new Meanings(data.meanings, this.layers) : null;
    this.#localRemovals = decode(data.removed);
  }

  /** The arrays of a scorer, decoded when they are first needed. */
  scorer(name) {
    if (!this.#scorers.has(name)) {
      const entry = this.#data.scorers[name];
      this.#scorers.set(name, {
        ...entry,
        scores: decode(entry.scores),
        positions: this.#positions(entry.positions),
        removals: { local: this.#localRemovals, global: decode(entry.removed) },
        orders: new Map(),
        places: new Map(),
      });
    }
    return this.#scorers.get(name);
  }

  #positions({ local, global }) {
    const decoded = decode(local);
    return { local: decoded, global: global ? decode(global) : decoded };
  }

  /** The neurons of a layer, that of the highest score first. */
  order(scorer, layer) {
    if (!scorer.orders.has(layer.number)) {
      const order = new Uint32Array(layer.size);
      if (this.#removesByScore(layer)) {
        for (let k = 0; k < layer.size; k += 1) order[this.place(scorer, layer, k) - 1] = k;
      } else {
        const scores = scorer.scores.subarray(layer.start, layer.start + layer.size);
        order.set(Array.from(order, (_, k) => k).sort((a, b) => scores[b] - scores[a] || b - a));
      }
      scorer.orders.set(layer.number, order);
    }
    return scorer.orders.get(layer.number);
  }

  /** Whether the neurons of a layer are removed in the order of their scores; those of a mixture need not be. */
  #removesByScore(layer) {
    return !layer.experts && !this.isFixed && this.unitsOf[layer.start] >= 0;
  }

  /** The place of a neuron in its layer; 1 is the highest score. */
  place(scorer, layer, neuron) {
    if (this.#removesByScore(layer)) return layer.size - scorer.positions.local[layer.start + neuron];
    if (!scorer.places.has(layer.number)) {
      const places = new Uint32Array(layer.size);
      this.order(scorer, layer).forEach((k, place) => (places[k] = place + 1));
      scorer.places.set(layer.number, places);
    }
    return scorer.places.get(layer.number)[neuron];
  }

  /** A neuron's score relative to the mean score of its layer. */
  relativeScore(scorer, layer, neuron) {
    return scorer.scores[layer.start + neuron] * layer.size;
  }

  /** How many of each kind of units a budget removes at an amount. */
  removedUnits(scorer, budget, multiple, amount) {
    const { amounts, multiples, units } = this.#data;
    const first = (multiples.indexOf(multiple) * amounts.length + amount) * units.length;
    return scorer.removals[budget].subarray(first, first + units.length);
  }

  /**
   * What a budget removes at an amount: {counts by layer, total, refusal, removes(layer, neuron)}.
   * If the library refuses the amount, nothing is removed, and `refusal` says why.
   */
  plan(scorer, budget, multiple, amount) {
    const units = this.removedUnits(scorer, budget, multiple, amount);
    const positions = scorer.positions[budget];
    const removes = (layer, neuron) => {
      const at = layer.start + neuron;
      return this.unitsOf[at] >= 0 && positions[at] < units[this.unitsOf[at]];
    };
    const counts = new Uint32Array(this.layers.length);
    if (this.isFixed) {
      for (const layer of this.layers) counts[layer.number] = this.countRemoved({ removes }, layer, 0, layer.size);
    } else {
      this.#data.units.forEach(({ layer, each }, k) => (counts[layer] += units[k] * each));
    }
    const total = counts.reduce((sum, n) => sum + n, 0);
    return { counts, total, refusal: this.#data.refusals[budget][amount], removes };
  }

  /** The lowest percentage on the slider at which a budget removes a neuron, or null if there is none. */
  removedFrom(scorer, layer, neuron, budget, multiple) {
    const at = layer.start + neuron;
    const units = this.unitsOf[at];
    if (this.isFixed || units < 0) return null;
    for (let percent = 0; percent <= this.#data.slider_end; percent += 1) {
      if (this.removedUnits(scorer, budget, multiple, percent)[units] > scorer.positions[budget][at]) return percent;
    }
    return null;
  }

  // --- experts

  countRemoved(plan, layer, start, size) {
    let removed = 0;
    for (let k = start; k < start + size; k += 1) if (plan.removes(layer, k)) removed += 1;
    return removed;
  }

  /** The expert of a mixture that holds a neuron. */
  expertOf(layer, neuron) {
    return layer.experts.find(({ start, size }) => neuron >= start && neuron < start + size);
  }

  /** The sum of the scores of an expert's neurons. */
  expertScore(scorer, layer, { start, size }) {
    let sum = 0;
    for (let k = layer.start + start; k < layer.start + start + size; k += 1) sum += scorer.scores[k];
    return sum;
  }

  /**
   * The scores next to the cut in one layer: {removed: the highest removed, kept: the lowest kept}; null where there is none, and
   * in a mixture of experts, whose removed neurons need not be those of the lowest scores.
   */
  cut(scorer, layer, plan) {
    if (layer.experts) return { removed: null, kept: null };
    const order = this.order(scorer, layer);
    const kept = layer.size - plan.counts[layer.number];
    const score = (k) => (k >= 0 && k < layer.size ? scorer.scores[layer.start + order[k]] : null);
    return { removed: score(kept), kept: score(kept - 1) };
  }

  /**
   * A neuron's score divided by the score on the other side of the cut; NaN if there is no neuron on that side. In a mixture the
   * neuron is compared with those of its expert or, where whole experts are removed, its expert with the others.
   */
  margin(scorer, layer, neuron, plan) {
    if (layer.experts) return this.#marginInMixture(scorer, layer, neuron, plan);
    const { removed, kept } = this.cut(scorer, layer, plan);
    const other = plan.removes(layer, neuron) ? kept : removed;
    return other === null ? NaN : scorer.scores[layer.start + neuron] / other;
  }

  #marginInMixture(scorer, layer, neuron, plan) {
    const expert = this.expertOf(layer, neuron);
    const isRemoved = ({ start, size }) => this.countRemoved(plan, layer, start, size) === size;
    let own = scorer.scores[layer.start + neuron];
    let rivals = Array.from({ length: expert.size }, (_, k) => expert.start + k)
      .filter((k) => plan.removes(layer, k) !== plan.removes(layer, neuron))
      .map((k) => scorer.scores[layer.start + k]);
    if (expert.routed && (this.removesWhole || (this.isFixed && isRemoved(expert)))) {
      own = this.expertScore(scorer, layer, expert);
      rivals = layer.experts
        .filter((each) => each.routed && isRemoved(each) !== isRemoved(expert))
        .map((each) => this.expertScore(scorer, layer, each));
    }
    if (!rivals.length) return NaN;
    return own / (plan.removes(layer, neuron) ? Math.min(...rivals) : Math.max(...rivals));
  }
}

/** The rows of an array that holds all neurons, or the highest neurons of each layer if there are too many for the page. */
class Rows {
  #rows = null;

  constructor(held, neurons, layers) {
    this.held = held;
    this.starts = [];
    let start = 0;
    for (const count of held) {
      this.starts.push(start);
      start += count;
    }
    this.neurons = neurons === null ? null : decode(neurons);
    if (this.neurons !== null) {
      this.#rows = layers.map(({ number }) => {
        const first = this.starts[number];
        return new Map(Array.from(this.neurons.subarray(first, first + held[number]), (neuron, row) => [neuron, row]));
      });
    }
  }

  /** The row of a neuron, or undefined if the page does not hold it. */
  of(layer, neuron) {
    const row = this.#rows === null ? neuron : this.#rows[layer.number].get(neuron);
    return row === undefined ? undefined : this.starts[layer.number] + row;
  }

  /** Call `visit(row, neuron)` for every row of a layer. */
  each(layer, visit) {
    const first = this.starts[layer.number];
    for (let k = first; k < first + this.held[layer.number]; k += 1) {
      visit(k, this.neurons === null ? k - first : this.neurons[k]);
    }
  }
}

/** The strongest edges of the neurons. */
class Edges {
  #rows;

  constructor(entry, layers) {
    this.top = entry.top;
    this.#rows = new Rows(entry.held, entry.neurons, layers);
    this.in = { nodes: decode(entry.in_nodes), shares: decode(entry.in_shares) };
    this.out = { nodes: decode(entry.out_nodes), shares: decode(entry.out_shares) };
  }

  /** [{node, share}], the strongest first, or null if the page does not hold the edges of this neuron. */
  of(layer, neuron, side) {
    const row = this.#rows.of(layer, neuron);
    if (row === undefined) return null;
    const { nodes, shares } = this[side];
    const edges = [];
    const first = row * this.top;
    for (let k = first; k < first + this.top; k += 1) {
      if (shares[k] > 0) edges.push({ node: nodes[k], share: shares[k] });
    }
    return edges;
  }
}

/** The share of the neurons kept by one plan, in some layers, that the other plan keeps too. */
function keptOverlap(layers, one, other) {
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
