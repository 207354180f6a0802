// The parts of all charts: SVG elements, scales, axes, and the text beside the pointer.
// Colours come from the style sheet, so that a chart follows light and dark without being drawn again.

const COUNT = new Intl.NumberFormat("en-US");
// Colours at equal distances of the colour map of the figures, COLOUR_MAP in graphs/draw/colours.py.
const COLOUR_MAP = ["#00224e", "#1a386f", "#434e6c", "#61656f", "#7d7c78", "#9b9476", "#bcae6c", "#dec958", "#fee838"];

// --- numbers as text

function count(n) {
  return COUNT.format(n);
}

function plural(n, noun) {
  return `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
}

/** A number to four significant digits, with an exponent if it is very small or large. */
function significant(x) {
  if (x === 0) return "0";
  const size = Math.abs(x);
  return size >= 1e-3 && size < 1e6 ? String(Number(x.toPrecision(4))) : x.toExponential(3);
}

function percent(share, digits = 1) {
  return `${(100 * share).toFixed(digits)} %`;
}

// --- elements

/**
 * An SVG element. Its `tip` is shown beside the pointer: a string, or a function that returns one for the pointer's place
 * (0 at the left end of the element, 1 at the right).
 */
function svg(tag, { tip, ...attributes } = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (tip !== undefined) made.tip = tip;
  made.append(...children);
  return made;
}

/** Replace the chart in a box by one that is as wide as the box. */
function showChart(box, height, ...children) {
  box.replaceChildren(svg("svg", { width: box.clientWidth, height }, ...children));
}

function line(x1, y1, x2, y2, attributes = {}) {
  return svg("line", { x1, y1, x2, y2, ...attributes });
}

function rect(x, y, width, height, attributes = {}) {
  return svg("rect", { x, y, width: Math.max(width, 0), height: Math.max(height, 0), ...attributes });
}

function text(x, y, words, attributes = {}) {
  return svg("text", { x, y, ...attributes }, words);
}

/** A path through the points [[x, y], ...]. */
function path(points, attributes = {}) {
  return svg("path", { d: `M${points.map((point) => point.join(",")).join("L")}`, ...attributes });
}

// --- scales and axes

/** A linear function from values to pixels. */
function scale([low, high], [start, end]) {
  return (value) => start + ((value - low) / (high - low)) * (end - start);
}

/** Ticks at whole numbers from 0, at most one more than `most`. */
function wholeTicks(high, most) {
  let step = 1;
  for (let k = 0; high / step > most; k += 1) step *= k % 3 === 1 ? 2.5 : 2;
  return Array.from({ length: Math.floor(high / step) + 1 }, (_, k) => ({ value: k * step, label: count(k * step) }));
}

/** Ticks of a log10 axis at 1, 2 and 5 in every decade, or at powers of ten if there are many decades. */
function logTicks(low, high) {
  const digits = high - low < 2.2 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let decade = Math.floor(low); decade <= Math.ceil(high); decade += high - low > 8 ? 2 : 1) {
    for (const digit of digits) ticks.push({ value: decade + Math.log10(digit), label: significant(digit * 10 ** decade) });
  }
  return ticks.filter(({ value }) => value >= low - 1e-9 && value <= high + 1e-9);
}

/** An axis below a chart, at y, with its title at `middle`. */
function bottomAxis(x, y, ticks, title, middle) {
  const marks = ticks.flatMap(({ value, label }) => [
    line(x(value), y, x(value), y + 3, { class: "rule" }),
    text(x(value), y + 14, label, { class: "tick", "text-anchor": "middle" }),
  ]);
  return svg("g", {}, ...marks, text(middle, y + 31, title, { "text-anchor": "middle" }));
}

/** An axis on the left of a chart, at x, with its title at `middle`, turned upwards. */
function leftAxis(x, y, ticks, title, middle) {
  const marks = ticks.flatMap(({ value, label }) => [
    line(x - 3, y(value), x, y(value), { class: "rule" }),
    text(x - 6, y(value), label, { class: "tick", "text-anchor": "end", dy: "0.35em" }),
  ]);
  return svg("g", {}, ...marks, text(0, 0, title, { "text-anchor": "middle", transform: `translate(10 ${middle}) rotate(-90)` }));
}

// --- colours of a heat map

/** [red, green, blue] of a share from 0 to 1. */
function heatColour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (COLOUR_MAP.length - 1);
  const k = Math.min(Math.floor(at), COLOUR_MAP.length - 2);
  const channels = (colour) => [1, 3, 5].map((from) => parseInt(colour.slice(from, from + 2), 16));
  const [one, other] = [channels(COLOUR_MAP[k]), channels(COLOUR_MAP[k + 1])];
  return one.map((value, channel) => Math.round(value + (at - k) * (other[channel] - value)));
}

/** The address of an image with one pixel for each share; a share of null is left transparent. */
function heatImage(rows) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [rows[0].length, rows.length];
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  rows.flat().forEach((share, k) => {
    if (share !== null) image.data.set([...heatColour(share), 255], 4 * k);
  });
  context.putImageData(image, 0, 0);
  return canvas.toDataURL();
}

// --- the text beside the pointer

function showTip(event) {
  const tip = document.getElementById("tip");
  const { target } = event;
  if (target.tip === undefined) {
    tip.hidden = true;
    return;
  }
  const { left, width } = target.getBoundingClientRect();
  tip.textContent = typeof target.tip === "function" ? target.tip((event.clientX - left) / width) : target.tip;
  tip.hidden = false;
  // Beside the pointer, and within the window.
  const x = Math.min(event.clientX + 14, document.documentElement.clientWidth - tip.offsetWidth - 4);
  const above = event.clientY - tip.offsetHeight - 10;
  tip.style.left = `${Math.max(x, 4)}px`;
  tip.style.top = `${above > 4 ? above : event.clientY + 18}px`;
}

function hideTip() {
  document.getElementById("tip").hidden = true;
}
