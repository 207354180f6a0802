// Finds the layer or neuron that a reader types. Nothing in this file reads or changes the page.

const DIGITS = /^\d+$/;

/** Layers whose name contains the text as whole words: "layers.3" is in "model.layers.3.mlp", not in "layers.30". */
function layersNamed(model, text) {
  const exact = model.layers.filter((layer) => layer.name === text);
  if (exact.length) return exact;
  const wanted = text.toLowerCase();
  const letter = /[\p{L}\p{N}_]/u;
  return model.layers.filter((layer) => {
    const name = layer.name.toLowerCase();
    for (let at = name.indexOf(wanted); at >= 0; at = name.indexOf(wanted, at + 1)) {
      const before = name[at - 1] ?? "";
      const after = name[at + wanted.length] ?? "";
      if (!letter.test(before) && !letter.test(after)) return true;
    }
    return false;
  });
}

/** {layer, expert} of an expert of a mixture, by its name or as LAYER.EXPERT, or null. */
function expertNamed(model, text) {
  const numbers = /^(\d+)\.(\d+)$/.exec(text);
  const layer = numbers ? model.layers[Number(numbers[1])] : undefined;
  const expert = layer?.experts?.[Number(numbers[2])];
  if (expert) return { layer, expert };
  if (model.hasHeads) return null; // a layer's name may end in a number, and the groups have no names
  const at = text.lastIndexOf(".");
  const named = at < 0 ? [] : layersNamed(model, text.slice(0, at)).filter((each) => each.experts);
  const found = named.length === 1 ? named[0].experts.find(({ label }) => label === text.slice(at + 1)) : undefined;
  return found ? { layer: named[0], expert: found } : null;
}

/**
 * {layer, neuron, expert}, with null for what the text does not name, or {error}. A number alone is a neuron of `current`; a
 * neuron after an expert is counted from the first of that expert.
 */
function findNeuron(model, text, current) {
  const query = text.trim();
  const last = model.layers.length - 1;
  if (!query) return { error: `Type a layer and a neuron, such as ${Math.min(3, last)}:17.` };
  if (DIGITS.test(query)) return checkNeuron(current, Number(query));
  const named = layersNamed(model, query);
  if (named.length === 1) return { layer: named[0], neuron: null };
  const numbered = /^layer\s+(\d+)$/iu.exec(query);
  if (numbered && Number(numbered[1]) <= last) return { layer: model.layers[Number(numbered[1])], neuron: null };
  const parts = /^(.*?)(?:\s*[:#/,]\s*|\s+(?:neuron\s*)?#?\s*)(\d+)\]?$/isu.exec(query);
  const where = (parts ? parts[1] : query).replace(/[\s:#/,]+$/u, "").replace(/^layer\s+(?=\d+$)/iu, "");
  const neuron = parts ? Number(parts[2]) : null;
  const inside = expertNamed(model, where);
  if (inside) {
    const { layer, expert } = inside;
    if (neuron === null) return { layer, neuron, expert };
    if (neuron < expert.size) return { layer, neuron: expert.start + neuron, expert };
    return { error: `${model.hasHeads ? "Group" : "Expert"} ${expert.label} of layer ${layer.number} has neurons 0 to ${expert.size - 1}, and no neuron ${neuron}.` };
  }
  const layers = DIGITS.test(where) ? model.layers.slice(Number(where), Number(where) + 1) : layersNamed(model, where);
  if (layers.length > 1) {
    const names = layers.slice(0, 3).map((layer) => layer.name);
    return { error: `${layers.length} layers match: ${names.join(", ")}${layers.length > 3 ? ", …" : ""}. Type more of the name.` };
  }
  if (!layers.length) return { error: `There is no layer “${where}”. Type a number from 0 to ${last}, or the name of a layer.` };
  return neuron === null ? { layer: layers[0], neuron } : checkNeuron(layers[0], neuron);
}

function checkNeuron(layer, neuron) {
  if (neuron < layer.size) return { layer, neuron };
  return { error: `Layer ${layer.number} has neurons 0 to ${layer.size - 1}, and no neuron ${neuron}.` };
}
