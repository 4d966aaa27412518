// Sana Sketch: a canvas in the node. The sketch is a text of strokes in a hidden widget, saved with the workflow; with
// the editor's Run (On Change) each stroke starts a run, and while one is going only the latest sketch waits.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { addElement, after, classOf, element, fit, linked, loadTexts, locator, onRemoval, text, watch, widgetOf } from "./common.js";

const UNIT = 10000;
const LONGEST_SIDE = 768;
const NEAR = 20;
const INKS = ["#ffffff", "#000000"];
const empty = () => ({ v: 1, paper: "#000000", strokes: [] });
const sketches = new Map();

function parsed(value) {
  try {
    const found = JSON.parse(value || "null");
    return Array.isArray(found?.strokes) ? { ...empty(), ...found } : empty();
  } catch {
    return empty();
  }
}

class Sketch {
  constructor(node) {
    this.node = node;
    this.saved = widgetOf(node, "sketch");
    this.canvas = element("canvas", { style: { width: "100%", touchAction: "none", cursor: "crosshair", display: "block" } });
    this.under = element("img", { draggable: false, style: { display: "none" } });
    Object.assign(this.under.style, { position: "absolute", inset: "0", width: "100%", height: "100%", objectFit: "cover" });
    Object.assign(this.under.style, { opacity: "0.45", pointerEvents: "none" });
    const stack = element("div", { style: { position: "relative", lineHeight: "0", borderRadius: "4px", overflow: "hidden" } });
    stack.append(this.canvas, this.under);
    this.root = element("div", { className: "sana-sketch", style: { padding: "0 8px" } }, this.tools(), stack);
    for (const name of ["pointerdown", "pointermove", "pointerup", "pointercancel", "lostpointercapture"]) {
      this.canvas.addEventListener(name, (event) => this[name](event));
    }
    this.read();
    this.widget = addElement(node, "sana_sketch", this.root, (width) => 34 + (width - 28) * this.ratio());
  }

  tools() {
    this.ink = element("input", { type: "color", value: INKS[0], style: { width: "26px", height: "20px", padding: "0" } });
    this.size = element("input", { type: "range", min: 20, max: 1200, value: 120, style: { flex: "1", minWidth: "40px" } });
    this.pen = this.button("✎", () => this.use(false));
    this.eraser = this.button("⌫", () => this.use(true));
    this.undo = this.button("↶", () => this.change(() => this.sketch.strokes.pop()));
    this.clear = this.button("✕", () => this.change(() => (this.sketch.strokes = [])));
    this.paper = this.button("◐", () => this.turnPaper());
    const row = { display: "flex", gap: "6px", alignItems: "center", height: "26px" };
    const parts = [this.pen, this.eraser, this.ink, this.size, this.undo, this.clear, this.paper];
    this.use(false);
    return element("div", { className: "sana-sketch-tools", style: row }, ...parts);
  }

  button(label, pressed) {
    const style = { border: "0", borderRadius: "4px", color: "inherit", cursor: "pointer", width: "22px", height: "20px" };
    return element("button", { type: "button", textContent: label, onclick: pressed, style: { padding: "0", ...style } });
  }

  use(erasing) {
    this.erasing = erasing;
    this.pen.style.background = erasing ? "none" : "#7cc04a88";
    this.eraser.style.background = erasing ? "#7cc04a88" : "none";
  }

  name() {
    const named = { pen: this.pen, eraser: this.eraser, ink: this.ink, size: this.size };
    Object.assign(named, { undo: this.undo, clear: this.clear, paper: this.paper });
    for (const [key, part] of Object.entries(named)) part.title = text(key);
  }

  turnPaper() {
    this.change(() => {
      const dark = this.sketch.paper === INKS[1];
      this.sketch.paper = INKS[dark ? 0 : 1];
      this.ink.value = INKS[dark ? 1 : 0];
    });
  }

  ratio() {
    const [width, height] = ["width", "height"].map((name) => Number(widgetOf(this.node, name)?.value) || 1024);
    return Math.min(Math.max(height / width, 0.2), 5);
  }

  /** Take the sketch from the saved text, and the canvas's size from the node's numbers. */
  read() {
    this.sketch = parsed(this.saved.value);
    const ratio = this.ratio();
    this.canvas.width = Math.round(LONGEST_SIDE / Math.max(1, ratio));
    this.canvas.height = Math.round(this.canvas.width * ratio);
    this.canvas.style.aspectRatio = `${this.canvas.width} / ${this.canvas.height}`;
    this.render();
    if (this.widget) fit(this.node);
  }

  render() {
    const context = this.canvas.getContext("2d");
    context.fillStyle = this.sketch.paper;
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    for (const stroke of this.sketch.strokes) this.line(stroke, 0);
  }

  /** Render a stroke from its point number `from` on. */
  line(stroke, from) {
    const { width, height } = this.canvas;
    const context = this.canvas.getContext("2d");
    const at = (i) => [(stroke.p[2 * i] / UNIT) * width, (stroke.p[2 * i + 1] / UNIT) * height];
    context.strokeStyle = stroke.e ? this.sketch.paper : stroke.c;
    context.lineWidth = (stroke.w / UNIT) * Math.min(width, height);
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(...at(from));
    for (let i = from; i < stroke.p.length / 2; i++) context.lineTo(...at(i));
    context.stroke();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    const part = (value, start, length) => Math.round(Math.min(Math.max((value - start) / length, 0), 1) * UNIT);
    return [part(event.clientX, box.left, box.width), part(event.clientY, box.top, box.height)];
  }

  pointerdown(event) {
    if (event.button !== 0) return;
    event.stopPropagation();
    if (this.stroke) return; // a second finger
    this.pointer = event.pointerId;
    this.canvas.setPointerCapture(event.pointerId);
    this.stroke = { c: this.ink.value, w: Number(this.size.value), p: this.place(event) };
    if (this.erasing) this.stroke.e = 1;
    this.line(this.stroke, 0);
  }

  pointermove(event) {
    if (!this.stroke || event.pointerId !== this.pointer) return;
    event.stopPropagation();
    const points = this.stroke.p;
    const before = points.length / 2;
    for (const each of event.getCoalescedEvents?.() ?? [event]) {
      const [x, y] = this.place(each);
      if (Math.hypot(x - points.at(-2), y - points.at(-1)) >= NEAR) points.push(x, y);
    }
    if (points.length / 2 > before) this.line(this.stroke, before - 1);
  }

  pointerup(event) {
    if (!this.stroke || event.pointerId !== this.pointer) return;
    event.stopPropagation();
    const stroke = this.stroke;
    this.stroke = null;
    this.change(() => this.sketch.strokes.push(stroke));
  }

  /** After the pointer is up there is no stroke any more; else its end never comes. */
  lostpointercapture(event) {
    this.pointerup(event);
  }

  pointercancel(event) {
    if (event.pointerId !== this.pointer) return;
    this.stroke = null;
    this.render();
  }

  /** Change the sketch, save its text, and tell the editor, which then may run. */
  change(make) {
    make();
    this.render();
    this.saved.value = this.sketch.strokes.length || this.sketch.paper !== INKS[1] ? JSON.stringify(this.sketch) : "";
    this.saved.callback?.(this.saved.value);
    this.node.graph?.setDirtyCanvas?.(true, true);
    const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
    (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
    this.changed?.();
  }

  /** The image under the sketch, as the last run saw it; null where none is connected. */
  show(name) {
    this.under.style.display = name ? "" : "none";
    if (!name) return;
    const query = new URLSearchParams({ filename: name, type: "temp", subfolder: "" });
    this.under.src = api.apiURL(`/view?${query}`);
  }
}

/** The editor's mode of the Run button, "change" for Run (On Change); undefined where its store is another one. */
const runMode = () => {
  const page = document.querySelector("#vue-app")?.__vue_app__?.config?.globalProperties;
  return page?.$pinia?._s?.get("queueSettingsStore")?.mode;
};

/**
 * The latest sketch wins: a stroke that ends just as the editor queues a run can be missed by its Run (On Change), whose
 * count of runs then stays above 0. When the queue is empty and the sketch is not the one that ran last, it is queued.
 */
function followUp(node, sketch) {
  const before = sketch.saved.serializeValue;
  sketch.saved.serializeValue = function (...args) {
    sketch.queued = sketch.saved.value;
    return before ? before.apply(this, args) : sketch.saved.value;
  };
  const missed = () => sketch.queued !== undefined && sketch.queued !== sketch.saved.value && !sketch.stroke;
  let idle = true;
  let timer;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(() => idle && missed() && runMode() === "change" && app.queuePrompt(0, 1), 400);
  };
  sketch.changed = later;
  const status = ({ detail }) => {
    if (detail?.exec_info?.queue_remaining === 0) idle = true;
    else if (detail?.exec_info) idle = false;
    later();
  };
  api.addEventListener("status", status);
  onRemoval(node, () => {
    clearTimeout(timer);
    api.removeEventListener("status", status);
    sketch.saved.serializeValue = before;
  });
}

function hide(widget) {
  widget.hidden = true;
  widget.options ??= {};
  widget.options.hidden = true;
  widget.computeSize = () => [0, -4];
  if (widget.element) widget.element.style.display = "none";
}

export async function created(node) {
  if (classOf(node) !== "SanaSketch" || !widgetOf(node, "sketch")) return;
  hide(widgetOf(node, "sketch"));
  const sketch = new Sketch(node);
  sketches.set(node, sketch);
  followUp(node, sketch);
  onRemoval(node, () => sketches.delete(node));
  onRemoval(node, after(node, "onExecuted", (output) => sketch.show(output?.sana_underlay?.[0])));
  for (const name of ["width", "height"]) watch(node, name, () => sketch.read());
  fit(node);
  await loadTexts();
  sketch.name();
  const connected = () => {
    if (!linked(node, "image")) sketch.show(null);
  };
  return { configured: () => sketch.read(), connected };
}

export function outputsRestored(outputs) {
  for (const [node, sketch] of sketches) {
    const output = outputs?.[locator(node)];
    if (output) sketch.show(output.sana_underlay?.[0]);
  }
}
