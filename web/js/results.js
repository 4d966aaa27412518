// Results in the node: a video plays muted in a loop, with pause and open; one that browsers do not play shows a small
// version and its path. ComfyUI's own preview, which keeps an old clip and takes a gif for a video, is not shown.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { addElement, after, classOf, element, fit, loadTexts, locator, onRemoval, text, widgetOf } from "./common.js";

const SAVERS = new Set(["SanaSaveVideo", "SanaDecodeSaveVideo", "SanaLongVideoSave"]);
const CORE_PREVIEW = "$$canvas-image-preview";
const shown = new Map();

/** A URL of a file that ComfyUI serves; `at` differs for each result, so that a new file is not an old one's cache. */
function urlOf(item, at) {
  const query = new URLSearchParams({ filename: item.filename, subfolder: item.subfolder ?? "", type: item.type, at });
  return api.apiURL(`/view?${query}`);
}

/** What a node's output says of its files: [{ name, file, preview, image }]. */
export function filesOf(output, at = Date.now()) {
  const items = [...(output?.images ?? []), ...(output?.files ?? [])].filter((item) => item?.filename);
  return items.map((item, i) => {
    const small = output.files ? output.sana_preview?.[i] : item.filename;
    const preview = output.files ? small && { filename: small, type: "temp" } : item;
    return {
      name: [item.subfolder, item.filename].filter(Boolean).join("/"),
      file: urlOf(item, at),
      preview: preview && urlOf(preview, at),
      image: /\.(gif|webp|png|jpe?g)$/i.test(small ?? ""),
    };
  });
}

class Result {
  constructor(node) {
    this.node = node;
    this.ratio = 0.6;
    this.media = element("div", { style: { flex: "1 1 auto", minHeight: "0", display: "flex" } });
    this.path = element("span", {
      style: { flex: "1", overflow: "hidden", textOverflow: "ellipsis", whiteSpace: "nowrap", direction: "rtl", textAlign: "left" },
    });
    this.pause = this.button("❚❚", () => this.toggle());
    this.next = this.button("", () => this.show(this.index + 1));
    this.link = element("a", { target: "_blank", rel: "noopener", textContent: "↗", style: { color: "inherit" } });
    const row = element("div", {
      style: { display: "flex", gap: "8px", fontSize: "11px", lineHeight: "18px", flex: "0 0 18px" },
    });
    row.append(this.pause, this.path, this.next, this.link);
    this.root = element("div", {
      className: "sana-result",
      style: { display: "flex", flexDirection: "column", gap: "4px", padding: "0 8px" },
    });
    this.root.append(this.media, row);
    addElement(node, "sana_result", this.root, (width) => this.height(width), true);
  }

  button(label, pressed) {
    const style = { border: "0", background: "none", color: "inherit", cursor: "pointer", padding: "0" };
    return element("button", { type: "button", textContent: label, onclick: pressed, style });
  }

  height(width) {
    return 34 + (this.files?.[this.index]?.preview ? Math.min(Math.max((width - 28) * this.ratio, 60), 640) : 0);
  }

  set(files) {
    this.files = files;
    this.pause.title = text("pause");
    this.link.title = text("open");
    this.next.title = text("next");
    this.show(0);
  }

  show(index) {
    this.index = index % this.files.length;
    const file = this.files[this.index];
    this.path.textContent = this.path.title = file.name;
    this.link.href = file.file;
    this.next.textContent = this.files.length > 1 ? `${this.index + 1}/${this.files.length} ▸` : "";
    this.media.replaceChildren(...(file.preview ? [file.image ? this.image(file) : this.video(file)] : []));
    this.pause.style.display = this.player ? "" : "none";
    fit(this.node);
  }

  image(file) {
    this.player = null;
    const made = element("img", { alt: file.name, draggable: false });
    made.onload = () => this.loaded(made, made.naturalWidth, made.naturalHeight);
    return this.placed(made, file);
  }

  video(file) {
    const made = element("video", { muted: true, autoplay: true, loop: true, playsInline: true, controls: true });
    made.onloadedmetadata = () => this.loaded(made, made.videoWidth, made.videoHeight);
    made.onplay = made.onpause = () => (this.pause.textContent = made.paused ? "▶" : "❚❚");
    this.player = made;
    return this.placed(made, file);
  }

  placed(made, file) {
    Object.assign(made.style, { width: "100%", minHeight: "0", objectFit: "contain", borderRadius: "4px" });
    made.onerror = () => this.failed(made, file);
    made.src = file.preview;
    return made;
  }

  loaded(made, width, height) {
    if (!width || !made.isConnected) return;
    made.style.aspectRatio = `${width} / ${height}`;
    this.ratio = height / width;
    fit(this.node);
  }

  failed(made, file) {
    if (!made.isConnected) return;
    this.player = null;
    this.pause.style.display = "none";
    this.media.replaceChildren(element("span", { textContent: text("cannotShow", { file: file.name }) }));
  }

  toggle() {
    if (this.player?.paused) this.player.play();
    else this.player?.pause();
  }

  remove() {
    this.media.replaceChildren();
    this.player = null;
  }
}

async function show(node, output) {
  const files = filesOf(output);
  if (!files.length) return;
  await loadTexts();
  if (!node.graph) return;
  if (!shown.has(node)) shown.set(node, null);
  if (!shown.get(node)) shown.set(node, new Result(node));
  forgetLivePreview(node);
  shown.get(node).set(files);
}

/** What ComfyUI showed on its canvas while the node sampled. */
function forgetLivePreview(node) {
  node.imgs = undefined;
  const widget = widgetOf(node, CORE_PREVIEW);
  if (widget) node.removeWidget?.(widget);
}

/** Files are named as in ComfyUI's own savers: %date:yyyy-MM-dd% and %Node.widget% are filled in by the page. */
function fillInNames(node) {
  const widget = widgetOf(node, "filename_prefix");
  const fill = window.comfyAPI?.utils?.applyTextReplacements;
  if (!widget || !fill) return;
  const before = widget.serializeValue;
  widget.serializeValue = async function (...args) {
    return fill(app, `${before ? await before.apply(this, args) : widget.value}`);
  };
  onRemoval(node, () => (widget.serializeValue = before));
}

export function created(node) {
  fillInNames(node);
  if (!SAVERS.has(classOf(node))) return;
  shown.set(node, null);
  node.hideOutputImages = true;
  node.onDrawBackground = function (...args) {
    const live = app.nodePreviewImages?.[locator(node)]?.length;
    if (live) Object.getPrototypeOf(node).onDrawBackground?.apply(node, args);
  };
  onRemoval(node, after(node, "onExecuted", (output) => show(node, output)));
  onRemoval(node, () => {
    shown.get(node)?.remove();
    shown.delete(node);
    delete node.onDrawBackground;
  });
}

/** The outputs that the editor keeps for a workflow whose tab is opened again. */
export function outputsRestored(outputs) {
  for (const node of shown.keys()) {
    const output = outputs?.[locator(node)];
    if (output) show(node, output);
  }
}
