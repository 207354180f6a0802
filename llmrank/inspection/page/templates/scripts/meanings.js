// The contexts in which neurons are most active, and the tokens that they promote and demote. Nothing in this file reads or
// changes the page.

class Meanings {
  #rows;
  #layers;
  #activations;
  #positions;
  #text;
  #before;
  #after;

  constructor(entry, layers) {
    this.k = entry.k;
    this.source = entry.source;
    this.withoutLens = entry.without_lens;
    this.tokens = entry.tokens;
    this.length = entry.length;
    [this.#before, this.#after] = entry.context;
    this.#layers = layers;
    this.#rows = new Rows(entry.held, entry.neurons, layers);
    this.#text = decode(entry.text);
    this.#activations = decode(entry.activations);
    this.#positions = decode(entry.positions);
    this.promoted = decode(entry.promoted);
    this.demoted = decode(entry.demoted);
  }

  #joined(start, end) {
    return Array.from(this.#text.subarray(start, end), (token) => this.tokens[token]).join("");
  }

  /** {contexts: [{activation, before, token, after}], promoted, demoted}, the strongest first; null if it is not in the page. */
  of(layer, neuron) {
    const row = this.#rows.of(layer, neuron);
    if (row === undefined) return null;
    const contexts = [];
    for (let k = row * this.k; k < (row + 1) * this.k; k += 1) {
      if (this.#activations[k] === 0) continue;
      const at = this.#positions[k];
      const start = at - (at % this.length);
      contexts.push({
        activation: this.#activations[k],
        before: this.#joined(Math.max(start, at - this.#before), at),
        token: this.tokens[this.#text[at]],
        after: this.#joined(at + 1, Math.min(start + this.length, at + 1 + this.#after)),
      });
    }
    const texts = (tokens) =>
      Array.from(tokens.subarray(row * this.k, (row + 1) * this.k))
        .filter((token) => token > 0)
        .map((token) => this.tokens[token]);
    return { contexts, promoted: texts(this.promoted), demoted: texts(this.demoted) };
  }

  /** The tokens with this text, with or without a space before it. */
  named(text) {
    const wanted = text.trim() || text;
    const found = new Set();
    this.tokens.forEach((token, k) => {
      if (k > 0 && (token === text || (token.trim() || token) === wanted)) found.add(k);
    });
    return found;
  }

  /** The texts of some tokens that contain a text, the shortest first. */
  containing(text, most) {
    const wanted = text.trim().toLowerCase();
    const found = wanted ? this.tokens.filter((token) => token.toLowerCase().includes(wanted)).map((token) => token.trim()) : [];
    return [...new Set(found)].sort((a, b) => a.length - b.length || (a < b ? -1 : 1)).slice(0, most);
  }

  /** The neurons with one of the tokens among their top contexts: [{layer, neuron, times, activation}], the most times first. */
  activeAt(tokens) {
    const found = [];
    this.#each((layer, neuron, row) => {
      let times = 0;
      let activation = 0;
      for (let k = row * this.k; k < (row + 1) * this.k; k += 1) {
        if (this.#activations[k] === 0 || !tokens.has(this.#text[this.#positions[k]])) continue;
        times += 1;
        if (Math.abs(this.#activations[k]) > Math.abs(activation)) activation = this.#activations[k];
      }
      if (times) found.push({ layer, neuron, times, activation });
    });
    return found.sort((a, b) => b.times - a.times || Math.abs(b.activation) - Math.abs(a.activation));
  }

  /** The neurons that promote or demote one of the tokens: [{layer, neuron, place}], where it is among the strongest first. */
  writing(tokens, side) {
    const found = [];
    this.#each((layer, neuron, row) => {
      for (let k = 0; k < this.k; k += 1) {
        if (!tokens.has(this[side][row * this.k + k])) continue;
        found.push({ layer, neuron, place: k + 1 });
        break;
      }
    });
    return found.sort((a, b) => a.place - b.place);
  }

  #each(visit) {
    for (const layer of this.#layers) this.#rows.each(layer, (row, neuron) => visit(layer, neuron, row));
  }
}
