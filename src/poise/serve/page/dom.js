/** Elements without markup: every text is set as text, so nothing that a model or a file says is read as HTML. */

const SVG = "http://www.w3.org/2000/svg";

/** An element with properties (attributes, `dataset`, `on…` handlers) and children: nodes, texts or nothing. */
export function el(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** The same for a drawing. */
export function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "dataset") Object.assign(node.dataset, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "disabled") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...present(children));
  return node;
}

const present = (children) =>
  children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);

/** The element of the page with this id. */
export const byId = (id) => document.getElementById(id);

/** Replace what is in a node. */
export function put(node, ...children) {
  node.replaceChildren(...present(children));
}

/** A table with a caption and a head; cells are texts or nodes, a row's first is its head. */
export function table(caption, heads, rows) {
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el(
      "table",
      {},
      el("caption", {}, caption),
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          heads.map((head) => el("th", { scope: "col" }, head)),
        ),
      ),
      el(
        "tbody",
        {},
        rows.map(([first, ...rest]) =>
          el(
            "tr",
            {},
            el("th", { scope: "row" }, first),
            rest.map((cell) => el("td", {}, cell)),
          ),
        ),
      ),
    ),
  );
}

/** Do the work soon, once for however many times it is asked for meanwhile, and with pauses four times as long as it takes. */
export function soon(work, milliseconds = 30) {
  let [asked, cost] = [false, 0];
  return () => {
    if (asked) return;
    asked = true;
    setTimeout(
      () => {
        asked = false;
        const begun = performance.now();
        work();
        cost = performance.now() - begun;
      },
      Math.max(milliseconds, 4 * cost),
    );
  };
}
