// The loaders: what the chosen file is (family, parameters, dtype, memory), and what a loader is doing.
import { api } from "../../../scripts/api.js";
import { addLine, classOf, isRunning, linked, loadTexts, onRemoval, text, watch, widgetOf } from "./common.js";

const INPUTS = {
  SanaLoadPipeline: "pipeline",
  SanaLoadTransformer: "model_name",
  SanaLoadTextEncoder: "encoder_name",
  SanaLoadVAE: "vae_name",
  SanaLoadLora: "lora_name",
  SanaLoadControlNet: "control_net_name",
};

const count = (value) => {
  if (value >= 5e8) return `${(value / 1e9).toFixed(1)} G`;
  return value >= 1e6 ? `${(value / 1e6).toFixed(1)} M` : `${Math.round(value / 1e3)} k`;
};

function row(part) {
  const memory = `${count(part.memory)}B`;
  if (!part.parameters) return text("factsUnread", { memory });
  const label = part.label || `${text("unknownKind")} ${count(part.parameters)}`;
  return text("facts", { label, dtype: part.dtype, memory });
}

export async function created(node) {
  const input = INPUTS[classOf(node)];
  if (!input) return;
  const say = addLine(node, "sana_facts");
  let known = "";
  let asked = 0;
  await loadTexts();
  const ask = async () => {
    const mine = ++asked;
    const name = widgetOf(node, input)?.value;
    if (!name || linked(node, input)) return say((known = ""));
    const weight_dtype = widgetOf(node, "weight_dtype")?.value ?? "default";
    const query = new URLSearchParams({ node: classOf(node), name, weight_dtype });
    const answer = await api.fetchApi(`/sana-nodes/facts?${query}`).catch(() => null);
    const found = answer?.ok ? await answer.json() : {};
    if (mine !== asked || !node.graph) return;
    known = (found.parts ?? []).map(row).join("\n");
    const wrong = found.missing ? text("factsMissing") : found.error;
    say(known || wrong || "", wrong ? "var(--error-text, #f66)" : "");
  };
  const status = ({ detail }) => {
    if (isRunning(node, detail?.node)) say(detail.text || known);
  };
  api.addEventListener("sana-nodes.status", status);
  onRemoval(node, () => api.removeEventListener("sana-nodes.status", status));
  let timer;
  const update = () => {
    clearTimeout(timer); // a node that is made, filled with saved values and configured asks once
    timer = setTimeout(ask);
  };
  onRemoval(node, () => clearTimeout(timer));
  watch(node, input, update);
  watch(node, "weight_dtype", update);
  update();
  return { configured: update, connected: update };
}
