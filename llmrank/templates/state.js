// What the page holds (the inspection), and where in it one looks.

const SLIDER_END = 90;
const BUDGETS = ["local", "global"];

const data = JSON.parse(document.getElementById("data").textContent);
const model = new Model(data);

const state = {
  scorer: data.scorer,
  budget: data.pruner,
  amount: data.asked.percent === null ? "asked" : { percent: data.asked.percent },
  layer: model.layers[0],
  neuron: null,
  preview: null,
  sort: { column: "place", descending: false },
  filter: "all",
  page: 0,
};
// What both budgets remove by the chosen scorer; all plans made at this amount; the rows of the table of neurons.
let plans = {};
let planned = new Map();
let rows = [];
