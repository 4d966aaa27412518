// The editor extension of Sana Nodes: each part adds to a node when it is created, and gives its hooks back.
import { app } from "../../../scripts/app.js";
import { after, classOf, forgetClosed, onRemoval } from "./common.js";
import * as facts from "./facts.js";
import * as notes from "./notes.js";
import * as resolution from "./resolution.js";
import * as results from "./results.js";
import * as reveal from "./reveal.js";
import * as schedule from "./schedule.js";
import * as sketch from "./sketch.js";

const PARTS = [sketch, reveal, schedule, resolution, facts, results];

/** Run what a part returned when the node's saved values are there, and when a link comes or goes. */
async function follow(node, made) {
  const hooks = await made;
  if (!hooks) return;
  if (hooks.configured) onRemoval(node, after(node, "onConfigure", () => queueMicrotask(hooks.configured)));
  if (hooks.connected) onRemoval(node, after(node, "onConnectionsChange", () => queueMicrotask(hooks.connected)));
  if (hooks.configured && node.graph) hooks.configured();
}

app.registerExtension({
  name: "SanaNodes",
  setup() {
    notes.setup();
  },
  nodeCreated(node) {
    if (!classOf(node).startsWith("Sana")) return;
    for (const part of PARTS) follow(node, part.created?.(node));
  },
  afterConfigureGraph: forgetClosed,
  onNodeOutputsUpdated(outputs) {
    for (const part of PARTS) part.outputsRestored?.(outputs);
  },
});
