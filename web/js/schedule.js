// SANA-Sprint's angles on a quarter circle, from pure noise at the top to the image at the right.
import { addElement, classOf, element, linked, loadTexts, text, watch, widgetOf } from "./common.js";

const NODES = new Set(["SanaSCMSample", "SanaSCMSigmas", "SanaImg2ImgLatent"]);
const INPUTS = ["steps", "max_timesteps", "intermediate_timesteps", "denoise", "strength", "start", "timesteps"];
const SIZE = 92;
const RADIUS = 68;

const lerp = (a, b, part) => a + (b - a) * part;

function started(angles, denoise) {
  const steps = angles.length - 1;
  const position = steps * (1 - denoise);
  const before = Math.min(Math.floor(position), steps - 1);
  const start = lerp(angles[before], angles[before + 1], position - before);
  const count = Math.max(1, Math.ceil(steps * denoise - 1e-9));
  const kept = Array.from({ length: count + 1 }, (_, i) => {
    const at = (i * steps) / count;
    const low = Math.min(Math.floor(at), steps - 1);
    return lerp(angles[low], angles[low + 1], at - low);
  });
  return kept.map((angle) => (angle * start) / kept[0]);
}

/** The angles that a node's values give, as samplers/trigflow.py computes them; null where they make no schedule. */
export function angles({ steps, max_timesteps, intermediate_timesteps, denoise, strength, start, timesteps }) {
  const given = `${timesteps ?? ""}`.split(/[,;]/).map((part) => part.trim()).filter(Boolean).map(Number);
  let found;
  if (given.length) found = given.at(-1) === 0 ? given : [...given, 0];
  else if (steps === 2) found = [max_timesteps, intermediate_timesteps, 0];
  else found = Array.from({ length: steps + 1 }, (_, i) => max_timesteps * (1 - i / steps));
  const falls = found.every((angle, i) => Number.isFinite(angle) && (i === 0 || angle < found[i - 1]));
  if (found.length < 2 || !falls || found[0] > 1.571) return null;
  const part = denoise ?? strength ?? 1;
  if (part <= 0) return [];
  if (start === "schedule") return found.slice(Math.trunc(Math.max(steps - Math.min(steps * part, steps), 0)));
  return part < 1 ? started(found, part) : found;
}

const point = (angle, radius = RADIUS) => [12 + Math.cos(angle) * radius, SIZE - 12 - Math.sin(angle) * radius];

function drawing(found) {
  const [x, y] = point(Math.PI / 2);
  const [right, bottom] = point(0);
  const spokes = found.map((angle) => `M12 ${SIZE - 12}L${point(angle).map((n) => n.toFixed(1)).join(" ")}`).join("");
  const dots = found.map((angle, i) => {
    const [cx, cy] = point(angle).map((n) => n.toFixed(1));
    return `<circle cx="${cx}" cy="${cy}" r="${i === found.length - 1 ? 3 : 4.5}" fill="#7cc04a"/>`;
  });
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${SIZE}" height="${SIZE}" viewBox="0 0 ${SIZE} ${SIZE}">` +
    `<path d="M${x} ${y}A${RADIUS} ${RADIUS} 0 0 1 ${right} ${bottom}" fill="none" stroke="currentColor" opacity=".5"/>` +
    `<path d="${spokes}" stroke="#7cc04a" opacity=".45"/>${dots.join("")}</svg>`
  );
}

export async function created(node) {
  if (!NODES.has(classOf(node))) return;
  const side = element("div", { style: { flex: "1", alignSelf: "center", whiteSpace: "pre-line" } });
  const figure = element("div", { style: { flex: `0 0 ${SIZE}px` } });
  const style = { display: "flex", gap: "8px", fontSize: "11px", lineHeight: "15px", padding: "0 8px", opacity: "0.85" };
  const root = element("div", { className: "sana-schedule", style: { ...style, minHeight: `${SIZE}px` } }, figure, side);
  addElement(node, "sana_schedule", root, SIZE + 12);
  await loadTexts();
  const update = () => {
    const values = Object.fromEntries(INPUTS.map((name) => [name, widgetOf(node, name)?.value]));
    const replaced = linked(node, "sigmas");
    const unknown = replaced || INPUTS.some((name) => linked(node, name)); // a link's value comes with the run
    const found = unknown ? [] : angles(values);
    figure.innerHTML = drawing(found ?? []);
    const listed = (found ?? []).slice(0, 5).map((angle) => angle.toFixed(4).replace(/0+$/, "").replace(/\.$/, ""));
    if (found?.length > 5) listed.push("…");
    side.textContent = replaced ? text("anglesFromSigmas") : found ? listed.join("\n") : text("anglesMustFall");
    side.style.color = found ? "" : "var(--error-text, #f66)";
  };
  for (const name of INPUTS) watch(node, name, update);
  update();
  return { configured: update, connected: update };
}
