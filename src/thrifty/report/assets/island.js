// All that the page knows: the document of `thrifty show --json`, and how the page was asked for.

const ISLAND = JSON.parse(document.getElementById("document").textContent);
const STUDY = ISLAND.study;
const OPTIONS = ISLAND.options;
