// The data of the page, and what the reader has chosen.

const BUDGETS = ["local", "global"];

const data = JSON.parse(document.getElementById("data").textContent);
const model = new Model(data);

const state = {
  scorer: data.scorer,
  budget: data.pruner,
  multiple: data.multiples[data.inspected.multiple],
  // The index of an amount; below the end of the slider it is the percentage.
  amount: data.inspected.amount,
  layer: model.layers[0],
  neuron: null,
  // The neuron under the pointer in the table, shown for as long as the pointer is there.
  preview: null,
  sort: { column: "place", descending: false },
  filter: "all",
  page: 0,
};
// What both budgets remove by the chosen scorer, and by all scorers that were needed so far.
let plans = {};
let plansByScorer = new Map();
// The neurons in the table, in its order.
let rows = [];
