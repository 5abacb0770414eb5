// Curves of the loss on a canvas, on one scale. Each has `points` [step, loss, smoothed loss], where a gap is null, and
// the colors of its `dots` and its `line`. `validation` [step, loss] is drawn as a broken line, `marks` below all of it.

import { KINDS, placed } from "./marks.mjs"

export const VALIDATION = "#e05a9a"

// The places of the marks in the page's pixels, or null where there is nothing to draw.
export function drawCurves(canvas, curves, grid, validation = [], marks = {}) {
  const ratio = window.devicePixelRatio || 1
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio))
  const height = Math.max(1, Math.round(canvas.clientHeight * ratio))
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width
    canvas.height = height
  }
  const context = canvas.getContext("2d")
  context.clearRect(0, 0, width, height)
  const scale = fit([...curves.flatMap((curve) => curve.points), ...validation.map(([step, loss]) => [step, null, loss])])
  if (!scale) return null
  const pad = 4 * ratio
  const x = (step) => pad + ((width - 2 * pad) * (step - scale.first)) / Math.max(1, scale.last - scale.first)
  const y = (loss) => height - pad - ((height - 2 * pad) * (clamp(loss, scale) - scale.low)) / (scale.high - scale.low)

  context.strokeStyle = grid
  context.lineWidth = ratio
  for (let i = 0; i <= 2; i++) {
    const line = pad + ((height - 2 * pad) * i) / 2
    context.beginPath()
    context.moveTo(pad, line)
    context.lineTo(width - pad, line)
    context.stroke()
  }
  for (const curve of curves) {
    context.fillStyle = curve.dots
    for (const [step, loss] of curve.points) {
      if (loss == null) continue
      context.beginPath()
      context.arc(x(step), y(loss), 1.6 * ratio, 0, 2 * Math.PI)
      context.fill()
    }
  }
  context.lineWidth = 2 * ratio
  context.lineJoin = "round"
  for (const curve of curves) {
    context.strokeStyle = curve.line
    context.beginPath()
    let open = false
    for (const [step, , smooth] of curve.points) {
      if (smooth == null) continue
      if (open) context.lineTo(x(step), y(smooth))
      else context.moveTo(x(step), y(smooth))
      open = true
    }
    context.stroke()
  }
  drawValidation(context, validation, x, y, ratio)
  const places = placed(marks, scale, width, pad)
  drawMarks(context, places, height, ratio)
  return places.map((place) => ({ ...place, x: place.x / ratio }))
}

function drawValidation(context, points, x, y, ratio) {
  context.strokeStyle = context.fillStyle = VALIDATION
  context.lineWidth = 1.5 * ratio
  context.setLineDash([5 * ratio, 3 * ratio])
  context.beginPath()
  points.forEach(([step, loss], at) => (at ? context.lineTo(x(step), y(loss)) : context.moveTo(x(step), y(loss))))
  context.stroke()
  context.setLineDash([])
  for (const [step, loss] of points) context.fillRect(x(step) - 2 * ratio, y(loss) - 2 * ratio, 4 * ratio, 4 * ratio)
}

// Short ticks at the lower edge; where the run went on, a thin line over the whole height.
function drawMarks(context, places, height, ratio) {
  for (const { kind, x } of places) {
    context.fillStyle = KINDS[kind].color
    if (kind === "resume") context.fillRect(Math.round(x), 0, Math.max(1, Math.round(ratio)), height)
    else context.fillRect(x - ratio, height - (kind === "save" ? 9 : 4) * ratio, 2 * ratio, (kind === "save" ? 5 : 4) * ratio)
  }
}

// The range shown: single spikes must not flatten the rest, so the top is the 98th percentile.
export function fit(points) {
  const losses = points.map((point) => point[1]).filter((loss) => loss != null).sort((a, b) => a - b)
  const smooth = points.map((point) => point[2]).filter((loss) => loss != null)
  if (!losses.length && !smooth.length) return null
  const [least, most] = losses.length ? [losses[0], losses[Math.floor((losses.length - 1) * 0.98)]] : [smooth[0], smooth[0]]
  let low = Math.min(least, ...smooth)
  let high = Math.max(most, ...smooth)
  const margin = Math.max((high - low) * 0.08, Math.abs(high) * 0.01, 1e-9)
  low = Math.max(0, low - margin)
  high += margin
  const steps = points.map((point) => point[0])
  return { low, high, first: Math.min(...steps), last: Math.max(...steps) }
}

function clamp(value, scale) {
  return Math.min(Math.max(value, scale.low), scale.high)
}
