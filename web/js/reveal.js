// Inputs that another one makes useful or useless: shown or hidden, and greyed while something replaces them.
import { asElements, classOf, fit, linked, watch, widgetOf } from "./common.js";

/** Node, the choice, its value, and the input that this value makes useful. */
const REVEALED = [["SanaEncodePrompt", "instruction", "custom", "custom_instruction"]];

/** Node, its optional input, and what that replaces while it is connected. */
const REPLACED = [
  ["SanaSCMSample", "sigmas", ["steps", "max_timesteps", "intermediate_timesteps", "denoise"]],
  ["SanaFlowSample", "sigmas", ["steps", "shift", "denoise"]],
];

function show(node, widget, visible) {
  const state = widget._state?.options ?? widget.options ?? {};
  for (const options of new Set([widget.options ?? {}, state])) {
    options.hidden = !visible;
    options.advanced = false;
  }
  widget.hidden = !visible;
  widget.advanced = false;
  if (asElements() && node.widgets) node.widgets.splice(0, 0);
  if (visible) fit(node);
  node.graph?.setDirtyCanvas?.(true, true);
}

export function created(node) {
  const updates = [];
  for (const [kind, choice, value, name] of REVEALED) {
    const widget = widgetOf(node, name);
    if (classOf(node) !== kind || !widget) continue;
    const update = () => {
      show(node, widget, linked(node, name) || widgetOf(node, choice)?.value === value);
    };
    watch(node, choice, update);
    updates.push(update);
  }
  for (const [kind, input, names] of REPLACED) {
    if (classOf(node) !== kind) continue;
    updates.push(() => {
      for (const name of names) {
        const widget = widgetOf(node, name);
        if (widget) widget.disabled = linked(node, input);
      }
    });
  }
  const update = () => updates.forEach((each) => each());
  update();
  return updates.length ? { configured: update, connected: update } : undefined;
}
