// The data of the page, and what the reader has chosen.

const BUDGETS = ["local", "global"];

const data = JSON.parse(document.getElementById("data").textContent);
const model = new Model(data);

const state = {
  scorer: data.scorer,
  budget: data.budget,
  multiple: data.multiples[data.inspected.multiple],
  // The index of an amount. Up to the end of the slider it is the percentage.
  amount: data.inspected.amount,
  layer: model.layers[0],
  neuron: null,
  // The expert, or the group of heads, whose neurons alone the table lists, if the open layer has some.
  expert: null,
  // The neuron under the pointer in the table, shown for as long as the pointer is there.
  preview: null,
  sort: { column: "place", descending: false },
  filter: "all",
  // The text that neurons are searched by, or null.
  token: null,
  expertSort: { column: model.part, descending: false },
  page: 0,
};
// What each budget removes by the chosen scorer, and by every scorer for which it was needed so far.
let plans = {};
let plansByScorer = new Map();
// The neurons that the table lists on all its pages, in its order.
let rows = [];
