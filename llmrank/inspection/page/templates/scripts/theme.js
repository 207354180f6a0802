// This runs before the page is shown, so that a reader with a dark system never sees it in light colours.
document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
