// Marks below a curve: where something was saved or drawn, and where the run went on. Pure.

export const KINDS = {
  save: { name: "saved", color: "#43a556" },
  sample: { name: "samples", color: "#4c8fe6" },
  resume: { name: "went on", color: "#e0b02e" },
}

// [{kind, step, x}] of the steps that lie in `scale` (first, last), in pixels between `pad` and `width` - `pad`.
export function placed(marks, scale, width, pad) {
  const found = []
  for (const kind of Object.keys(KINDS))
    for (const step of marks?.[kind] ?? []) {
      if (step < scale.first || step > scale.last) continue
      const x = pad + ((width - 2 * pad) * (step - scale.first)) / Math.max(1, scale.last - scale.first)
      found.push({ kind, step, x })
    }
  return found
}

// "step 250: saved, samples" for those within `reach` of x; "" where there is none.
export function told(places, x, reach) {
  const near = places.filter((place) => Math.abs(place.x - x) <= reach)
  if (!near.length) return ""
  const step = near.reduce((best, place) => (Math.abs(place.x - x) < Math.abs(best.x - x) ? place : best)).step
  const kinds = near.filter((place) => place.step === step).map((place) => KINDS[place.kind].name)
  return `step ${step}: ${kinds.join(", ")}`
}
