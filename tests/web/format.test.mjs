// Run by `node --test tests/web`: what the live view says, in numbers and words.

import assert from "node:assert/strict"
import { test } from "node:test"
import { fit } from "../../web/js/curve.mjs"
import { duration, gigabytes, mediaKind, number, pace, sampleCaption, viewQuery } from "../../web/js/format.mjs"

test("durations are said as people say them", () => {
  assert.equal(duration(59.6), "60 s")
  assert.equal(duration(90), "2 min")
  assert.equal(duration(3 * 3600 + 5 * 60), "3 h 05 min")
  assert.equal(duration(null), "")
  assert.equal(duration(Infinity), "")
})

test("numbers keep the digits that matter", () => {
  assert.equal(number(0.51236), "0.5124")
  assert.equal(number(0.0001), "1.00e-4")
  assert.equal(number(123.456), "123.5")
  assert.equal(number(0), "0.0000")
  assert.equal(number(NaN), "-")
})

test("speed is a step's seconds, or steps a second where they are many", () => {
  assert.equal(pace(2.5), "2.50 s/step")
  assert.equal(pace(0.25), "4.0 steps/s")
  assert.equal(pace(undefined), "")
})

test("memory is in GiB", () => assert.equal(gigabytes(3 * 2 ** 29), "1.5"))

test("a file is asked for with its folder, whatever its name", () => {
  const query = viewQuery({ filename: "a b&c.mp4", subfolder: "runs/x", type: "output" })
  assert.equal(new URLSearchParams(query.slice("/view?".length)).get("filename"), "a b&c.mp4")
})

test("a file is shown by the element of its kind", () => {
  assert.deepEqual(["x.PNG", "x.flac", "x.mp4"].map(mediaKind), ["img", "audio", "video"])
})

test("a caption names step, seed and prompt, as far as they are known", () => {
  assert.equal(sampleCaption({ step: 750, seed: 42, prompt: "a fox runs" }), "step 750, seed 42: a fox runs")
  assert.equal(sampleCaption({ prompt: "a fox runs" }), "a fox runs")
  assert.equal(sampleCaption({ step: 0 }), "step 0")
})

test("a spike does not flatten the curve, and a gap is no loss", () => {
  const points = Array.from({ length: 200 }, (_, step) => [step, 1 - step / 400, 1 - step / 400])
  points[100][1] = 1000
  points[101][1] = null
  const scale = fit(points)
  assert.ok(scale.high < 2, `${scale.high}`)
  assert.ok(scale.low <= 0.51)
  assert.deepEqual([scale.first, scale.last], [0, 199])
  assert.equal(fit([]), null)
  assert.deepEqual(fit([[5, null, 2]]).first, 5, "a validation before the first step is a curve")
})
