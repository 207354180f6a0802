// What the page holds (the inspection), and where in it one looks.

const BUDGETS = ["local", "global"];

const data = JSON.parse(document.getElementById("data").textContent);
const SLIDER_END = data.slider_end;
const model = new Model(data);

const state = {
  scorer: data.scorer,
  budget: data.pruner,
  multiple: data.multiple_of,
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
