// What the other files here share: hooks that are given back, small elements, texts in the editor's language.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

/** The class of a node in the graph, such as "SanaSaveVideo". */
export const classOf = (node) => node?.comfyClass ?? node?.constructor?.comfyClass ?? "";

export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

/** Whether a link leads into an input of a node. */
export const linked = (node, name) => node.inputs?.find((slot) => slot.name === name)?.link != null;

/** Whether the editor shows nodes as elements of the page (Nodes 2.0) and not on its canvas. */
export const asElements = () => Boolean(window.LiteGraph?.vueNodesMode);

/**
 * Call `added` after the function that `owner` has under `name`, which keeps its this, arguments and result.
 * Returns what gives the hook back: the earlier function is put back if nobody hooked in after us, else ours is idle.
 */
export function after(owner, name, added) {
  const own = Object.hasOwn(owner, name);
  const before = owner[name];
  let active = true;
  function hooked(...args) {
    const result = before?.apply(this, args);
    if (active) added.apply(this, args);
    return result;
  }
  owner[name] = hooked;
  return () => {
    active = false;
    if (owner[name] !== hooked) return;
    if (own) owner[name] = before;
    else delete owner[name];
  };
}

/** Call `changed` with a widget's value now and whenever it changes, in both renderings. */
export function watch(node, name, changed) {
  const widget = widgetOf(node, name);
  if (!widget) return;
  onRemoval(node, after(widget, "callback", () => changed(widget.value)));
}

const leaving = new Map();
const removed = new WeakSet();

/** Run `undo` when a node leaves the graph; at once where it left while a part still waited for its texts. */
export function onRemoval(node, undo) {
  if (removed.has(node)) return undo();
  if (!leaving.has(node)) {
    const list = [];
    const leave = () => {
      leaving.delete(node);
      removed.add(node);
      back();
      for (const each of list) each();
    };
    const back = after(node, "onRemoved", leave);
    leaving.set(node, { list, leave });
  }
  leaving.get(node).list.push(undo);
}

const inGraph = (node) => {
  const root = app.rootGraph ?? app.graph;
  const here = node.graph === root || !root.subgraphs || root.subgraphs.get(node.graph?.id) === node.graph;
  return here && node.graph?.getNodeById(node.id) === node;
};

/** After a graph was loaded: the editor does not say of the nodes in an earlier one's subgraphs that they are removed. */
export function forgetClosed() {
  for (const [node, { leave }] of [...leaving]) {
    if (!inGraph(node)) leave();
  }
}

/** The node's key in the editor's outputs: its id, after that of its subgraph. */
export function locator(node) {
  const graph = node.graph;
  return graph && graph.rootGraph && graph.rootGraph !== graph ? `${graph.id}:${node.id}` : `${node.id}`;
}

/** Whether the editor's running node, "5" or in subgraphs "12:5", is this one. */
export function isRunning(node, path) {
  const ids = `${path}`.split(":");
  let graph = app.rootGraph ?? app.graph;
  for (const id of ids.slice(0, -1)) graph = graph?.getNodeById(Number(id))?.subgraph;
  return `${node.id}` === ids.at(-1) && graph === node.graph;
}

export function element(tag, properties = {}, ...children) {
  const { style, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  if (style) Object.assign(made.style, style);
  made.append(...children);
  return made;
}

/**
 * A widget that shows an element and is saved nowhere. `height`: pixels that it needs, or a function of the width.
 * With `grows` it takes what height the node has beyond that.
 */
export function addElement(node, name, made, height, grows = false) {
  const needed = () => (typeof height === "function" ? height(node.size?.[0] ?? 300) : height);
  const options = { serialize: false, hideOnZoom: false, getMinHeight: needed, margin: 6 };
  if (!grows) options.getMaxHeight = needed;
  const widget = node.addDOMWidget(name, "sana", made, options);
  widget.serialize = false;
  made.addEventListener("wheel", wheelToCanvas, { passive: true });
  return widget;
}

/** On the canvas the wheel zooms over our elements too; elements of a page pass it on by themselves. */
function wheelToCanvas(event) {
  if (!asElements()) app.canvas?.canvas?.dispatchEvent(new WheelEvent(event.type, event));
}

/** Make a node at least as high as its widgets need. */
export function fit(node) {
  const needed = node.computeSize?.();
  if (needed && node.size && needed[1] > node.size[1]) node.setSize([node.size[0], needed[1]]);
  node.graph?.setDirtyCanvas?.(true, true);
}

const wide = (letter) => letter.charCodeAt(0) > 0x2e7f;

/** How many lines of 11 pixels a text takes in `width` pixels: about 6 for a letter, 11 for a Chinese, Japanese or Korean one. */
function linesOf(content, width) {
  const length = (line) => [...line].reduce((sum, letter) => sum + (wide(letter) ? 11 : 6), 0);
  const lines = content ? content.split("\n") : [];
  return lines.reduce((sum, line) => sum + Math.max(1, Math.ceil(length(line) / Math.max(width, 60))), 0);
}

/** Small text below the other widgets; an empty text takes no room. Returns a setter. */
export function addLine(node, name) {
  const line = element("div", {
    className: "sana-line",
    style: { fontSize: "11px", lineHeight: "16px", opacity: "0.75", whiteSpace: "pre-wrap", overflow: "hidden" },
  });
  const height = (width) => (line.textContent ? 16 * linesOf(line.textContent, width - 36) + 12 : 0);
  addElement(node, name, line, height);
  return (content, colour = "") => {
    const width = node.size?.[0] ?? 300;
    const before = height(width);
    line.textContent = line.title = content;
    line.style.color = colour;
    line.style.padding = content ? "0 8px" : "0";
    if (height(width) > before) fit(node);
  };
}

let texts;

const language = () => {
  const setting = app.extensionManager?.setting?.get?.("Comfy.Locale");
  return setting ?? app.ui?.settings?.getSettingValue?.("Comfy.Locale") ?? "en";
};

/** Load our texts; the editor serves every pack's locale files together. */
export function loadTexts() {
  texts ??= api
    .fetchApi("/i18n")
    .then((answer) => (answer.ok ? answer.json() : {}))
    .catch(() => ({}))
    .then((all) => (texts = { ...all.en?.sanaNodes, ...all[language()]?.sanaNodes }));
  return texts;
}

/** A text of locales/…/main.json with its {names} filled in. Await loadTexts() first. */
export function text(key, values = {}) {
  return (texts?.[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
