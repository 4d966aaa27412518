// Sana Resolution: the trained size that the numbers lead to, and its tokens, while they change.
import { addLine, classOf, linked, loadTexts, text, watch, widgetOf } from "./common.js";

let tables;

const load = () => (tables ??= fetch(new URL("../bins.json", import.meta.url)).then((answer) => answer.json()));

/** The trained [width, height] whose ratio is nearest, as the node chooses it. */
export function nearest(table, width, height) {
  const ratio = height / width;
  return table.sizes.reduce((best, size) => (Math.abs(size[0] - ratio) < Math.abs(best[0] - ratio) ? size : best)).slice(1);
}

export async function created(node) {
  if (classOf(node) !== "SanaResolution") return;
  const say = addLine(node, "sana_size");
  await loadTexts();
  const all = await load();
  const update = () => {
    const [width, height, bins] = ["width", "height", "bins"].map((name) => widgetOf(node, name)?.value);
    const table = all[bins];
    if (linked(node, "width") || linked(node, "height") || !table || !(width >= 1) || !(height >= 1)) return say("");
    const size = nearest(table, width, height);
    const tokens = Math.round((size[0] / table.cell) * (size[1] / table.cell)).toLocaleString("en");
    say(text(table.video ? "sizeOfVideo" : "sizeOfImage", { width: size[0], height: size[1], tokens }));
  };
  for (const name of ["width", "height", "bins"]) watch(node, name, update);
  update();
  return { configured: update, connected: update };
}
