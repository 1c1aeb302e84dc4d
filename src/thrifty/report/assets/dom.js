// Elements. Whatever the study says becomes a text node or an attribute's value, never markup.

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null && child !== false));
  return made;
}

function by(id) {
  return document.getElementById(id);
}

function fill(id, ...children) {
  by(id).replaceChildren(...children.filter((child) => child != null && child !== false));
}

// An item is a [name, value] pair; null is left out.
function list(items, attributes = {}) {
  return element(
    "dl",
    attributes,
    ...items
      .filter(Boolean)
      .map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
  );
}

function select(id, options, value, attributes = {}) {
  const made = element(
    "select",
    { id, ...attributes },
    ...options.map(([key, text]) => element("option", { value: key }, text)),
  );
  made.value = value;
  return made;
}

function labelled(text, control) {
  return element("label", {}, text, control);
}

// A column is [heading, number?]; a row's cells are texts or elements.
function plainTable(caption, columns, rows) {
  return element(
    "table",
    { class: "plain" },
    element("caption", {}, caption),
    element(
      "thead",
      {},
      element(
        "tr",
        {},
        ...columns.map(([heading, number]) =>
          heading ? element("th", { scope: "col", class: number && "number" }, heading) : element("td"),
        ),
      ),
    ),
    element(
      "tbody",
      {},
      ...rows.map((cells) =>
        element(
          "tr",
          {},
          ...cells.map((cell, i) => {
            const attributes = { class: columns[i][1] && "number" };
            return i === 0 ? element("th", { scope: "row", ...attributes }, cell) : element("td", attributes, cell);
          }),
        ),
      ),
    ),
  );
}

function mark(row) {
  const SVG = "http://www.w3.org/2000/svg";
  const [made, path] = [document.createElementNS(SVG, "svg"), document.createElementNS(SVG, "path")];
  made.setAttribute("viewBox", "0 0 16 16");
  made.setAttribute("class", `mark ${row.status}${row.screened ? " open" : ""}`);
  made.setAttribute("aria-hidden", "true");
  path.setAttribute("d", STATUSES[row.status].path);
  made.append(path);
  return made;
}

// A button that chooses a trial.
function link(row) {
  return element("button", { type: "button", class: "link", onclick: () => choose(row.id) }, row.name);
}

function links(rows, most = 6) {
  const shown = rows.slice(0, most).flatMap((row, i) => (i ? [", ", link(row)] : [link(row)]));
  return rows.length > most ? [...shown, ` and ${rows.length - most} more`] : shown;
}

function say(text) {
  by("said").textContent = text;
}

// A colour of the style sheet as the charts need it.
function colour(name, alpha = 1) {
  const probe = element("span", { class: "hidden" });
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const [r, g, b] = getComputedStyle(probe).color.match(/[\d.]+/g);
  probe.remove();
  return `rgba(${r}, ${g}, ${b}, ${alpha})`;
}
