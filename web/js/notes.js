// What a run tells that is no error, as a message on the page.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

export function setup() {
  api.addEventListener("sana-nodes.note", ({ detail }) => {
    const message = { severity: "warn", summary: "Sana Nodes", detail: detail?.text, life: 20000 };
    app.extensionManager?.toast?.add?.(message);
  });
}
