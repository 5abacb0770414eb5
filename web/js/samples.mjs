// The samples of a run as a table: a row for each step, step 0 on top, a column for each prompt, seed and kind. Pure.

const NAME = /^step_(\d+)_(p(\d+)_s(\d+).*)\.\w+$/

// "prompt 2, seed 7", or the `text` of the prompt in place of its number, and what else the name of a file says: the
// strength of a slider, the running mean.
export function columnOf(filename, text = "") {
  const found = NAME.exec(filename)
  if (!found) return null
  const more = found[2].slice(`p${found[3]}_s${found[4]}`.length)
  const told = more
    .replace(/^_/, "")
    .replace(/_?mult([+-][\d.e+-]+)/, " strength $1")
    .replaceAll("_", " ")
    .trim()
  const label = [text || `prompt ${Number(found[3])}`, `seed ${found[4]}`, told].filter(Boolean).join(", ")
  return { key: found[2], prompt: Number(found[3]), label }
}

// {columns: [{key, label}], rows: [{step, cells: [sample or null]}]} of what /samples of a run gives.
export function gridOf(samples) {
  const columns = new Map()
  const rows = new Map()
  const texts = new Map(samples.filter((sample) => sample.text).map((sample) => [`${sample.prompt} ${sample.seed}`, sample.text]))
  for (const sample of samples) {
    const column = sample.file && columnOf(sample.file.filename, texts.get(`${sample.prompt} ${sample.seed}`))
    if (!column) continue
    columns.set(column.key, column)
    if (!rows.has(sample.step)) rows.set(sample.step, new Map())
    rows.get(sample.step).set(column.key, sample)
  }
  const ordered = [...columns.values()].sort((a, b) => a.prompt - b.prompt || a.key.localeCompare(b.key, "en", { numeric: true }))
  const steps = [...rows.keys()].sort((a, b) => a - b)
  return {
    columns: ordered,
    rows: steps.map((step) => ({ step, cells: ordered.map((column) => rows.get(step).get(column.key) ?? null) })),
  }
}

// The cell that an arrow leads to from [row, column], over gaps; null at the edge.
export function neighbour(grid, [row, column], key) {
  const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[key] ?? [0, 0]
  if (!down && !right) return null
  for (let r = row + down, c = column + right; grid.rows[r] && c >= 0 && c < grid.columns.length; r += down, c += right)
    if (grid.rows[r].cells[c]) return [r, c]
  return null
}
