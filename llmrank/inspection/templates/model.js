// The data of the inspection, and what can be looked up in them. Nothing in this file reads or changes the page.
// The library computed in which order pruning removes the neurons of a layer, and how many of them at each amount. This file
// only looks that up, so the neurons that the page shows as removed are those that the library removes.

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
    this.activation = decode(data.facts.activation);
    this.inStrength = decode(data.facts.in_strength);
    this.outStrength = decode(data.facts.out_strength);
    this.edges = new Edges(data.edges, this.layers);
    this.#localRemovals = decode(data.removed);
  }

  /** The arrays of a scorer, decoded when they are first needed. */
  scorer(name) {
    if (!this.#scorers.has(name)) {
      const entry = this.#data.scorers[name];
      this.#scorers.set(name, {
        ...entry,
        scores: decode(entry.scores),
        positions: decode(entry.positions),
        removals: { local: this.#localRemovals, global: decode(entry.removed) },
        orders: new Map(),
      });
    }
    return this.#scorers.get(name);
  }

  /** The neurons of a layer, that of the highest score first. */
  order(scorer, layer) {
    if (!scorer.orders.has(layer.number)) {
      const order = new Uint32Array(layer.size);
      for (let k = 0; k < layer.size; k += 1) order[this.place(scorer, layer, k) - 1] = k;
      scorer.orders.set(layer.number, order);
    }
    return scorer.orders.get(layer.number);
  }

  /** The place of a neuron in its layer; 1 is the highest score. */
  place(scorer, layer, neuron) {
    return layer.size - scorer.positions[layer.start + neuron];
  }

  /** A neuron's score relative to the mean score of its layer. */
  relativeScore(scorer, layer, neuron) {
    return scorer.scores[layer.start + neuron] * layer.size;
  }

  /** How many neurons of each layer a budget removes at an amount. */
  removalCounts(scorer, budget, multiple, amount) {
    const { amounts, multiples } = this.#data;
    const first = (multiples.indexOf(multiple) * amounts.length + amount) * this.layers.length;
    return scorer.removals[budget].subarray(first, first + this.layers.length);
  }

  /**
   * What a budget removes at an amount: {counts by layer, total, refusal, removes(layer, neuron)}.
   * If the library refuses the amount, nothing is removed, and `refusal` says why.
   */
  plan(scorer, budget, multiple, amount) {
    const counts = this.removalCounts(scorer, budget, multiple, amount);
    return {
      counts,
      total: counts.reduce((sum, n) => sum + n, 0),
      refusal: this.#data.refusals[budget][amount],
      removes: (layer, neuron) => scorer.positions[layer.start + neuron] < counts[layer.number],
    };
  }

  /** The lowest percentage on the slider at which a budget removes a neuron, or null if there is none. */
  removedFrom(scorer, layer, neuron, budget, multiple) {
    const position = scorer.positions[layer.start + neuron];
    for (let percent = 0; percent <= this.#data.slider_end; percent += 1) {
      if (this.removalCounts(scorer, budget, multiple, percent)[layer.number] > position) return percent;
    }
    return null;
  }

  /** The scores next to the cut in one layer: {removed: the highest removed, kept: the lowest kept}; null where there is none. */
  cut(scorer, layer, plan) {
    const order = this.order(scorer, layer);
    const kept = layer.size - plan.counts[layer.number];
    const score = (k) => (k >= 0 && k < layer.size ? scorer.scores[layer.start + order[k]] : null);
    return { removed: score(kept), kept: score(kept - 1) };
  }

  /** A neuron's score divided by the score on the other side of the cut; NaN if there is no neuron on that side. */
  margin(scorer, layer, neuron, plan) {
    const { removed, kept } = this.cut(scorer, layer, plan);
    const other = plan.removes(layer, neuron) ? kept : removed;
    return other === null ? NaN : scorer.scores[layer.start + neuron] / other;
  }
}

/** The strongest edges of all neurons, or of the highest neurons alone if there are too many for the page. */
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

  /** [{node, share}], the strongest first, or null if the page does not hold the edges of this neuron. */
  of(layer, neuron, side) {
    const row = this.#rows === null ? neuron : this.#rows[layer.number].get(neuron);
    if (row === undefined) return null;
    const { nodes, shares } = this[side];
    const edges = [];
    const first = (this.starts[layer.number] + row) * this.top;
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
