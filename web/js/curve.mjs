// Curves of the loss on a canvas, on one scale. Each has `points` [step, loss, smoothed loss], where a gap is null, and
// the colors of its `dots` and its `line`.

export function drawCurves(canvas, curves, grid) {
  const ratio = window.devicePixelRatio || 1
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio))
  const height = Math.max(1, Math.round(canvas.clientHeight * ratio))
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width
    canvas.height = height
  }
  const context = canvas.getContext("2d")
  context.clearRect(0, 0, width, height)
  const scale = fit(curves.flatMap((curve) => curve.points))
  if (!scale) return false
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
  return true
}

// The range shown: single spikes must not flatten the rest, so the top is the 98th percentile.
export function fit(points) {
  const losses = points.map((point) => point[1]).filter((loss) => loss != null).sort((a, b) => a - b)
  if (!losses.length) return null
  const smooth = points.map((point) => point[2]).filter((loss) => loss != null)
  let low = Math.min(losses[0], ...smooth)
  let high = Math.max(losses[Math.floor((losses.length - 1) * 0.98)], ...smooth)
  const margin = Math.max((high - low) * 0.08, Math.abs(high) * 0.01, 1e-9)
  low = Math.max(0, low - margin)
  high += margin
  const steps = points.map((point) => point[0])
  return { low, high, first: Math.min(...steps), last: Math.max(...steps) }
}

function clamp(value, scale) {
  return Math.min(Math.max(value, scale.low), scale.high)
}
