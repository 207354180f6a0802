// This runs before the page is painted, so that a dark desktop does not flash white.
document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
