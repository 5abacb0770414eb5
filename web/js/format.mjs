// Numbers and times as people read them. Pure functions.

export function duration(seconds) {
  if (seconds == null || !isFinite(seconds)) return ""
  if (seconds < 90) return `${Math.round(seconds)} s`
  const minutes = Math.round(seconds / 60)
  if (minutes < 60) return `${minutes} min`
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`
}

export function number(value, digits = 4) {
  if (value == null || !isFinite(value)) return "-"
  const size = Math.abs(value)
  if (size !== 0 && (size < 0.001 || size >= 100000)) return value.toExponential(2)
  return value.toFixed(size >= 100 ? 1 : digits)
}

export function gigabytes(bytes) {
  return (bytes / 2 ** 30).toFixed(1)
}

export function pace(seconds) {
  if (seconds == null || !isFinite(seconds)) return ""
  return seconds >= 1 || seconds === 0 ? `${seconds.toFixed(2)} s/step` : `${(1 / seconds).toFixed(1)} steps/s`
}

// The parts of a path in the output folder as a query for ComfyUI's /view.
export function viewQuery(file) {
  return "/view?" + new URLSearchParams(file).toString()
}

// The element that shows a file: img, audio or video.
export function mediaKind(filename) {
  if (/\.(png|jpe?g|webp)$/i.test(filename)) return "img"
  return /\.(wav|flac|mp3|ogg)$/i.test(filename) ? "audio" : "video"
}

// "step 750, seed 42: a fox runs"
export function sampleCaption(sample) {
  const facts = []
  if (sample.step != null) facts.push(`step ${sample.step}`)
  if (sample.seed != null) facts.push(`seed ${sample.seed}`)
  return [facts.join(", "), sample.prompt].filter(Boolean).join(": ")
}
