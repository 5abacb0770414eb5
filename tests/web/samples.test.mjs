// Run by `node --test tests/web`: the table of samples, the marks below a curve, the list of runs.

import assert from "node:assert/strict"
import { test } from "node:test"
import { placed, told } from "../../web/js/marks.mjs"
import { columnOf, gridOf, neighbour } from "../../web/js/samples.mjs"
import { standing } from "../../web/js/runs_tab.mjs"

const sample = (step, rest) => ({ step, file: { filename: `step_${String(step).padStart(6, "0")}_${rest}` } })

test("a column is a prompt, its seed, and what else a name says", () => {
  assert.equal(columnOf("step_000250_p02_s7.mp4").label, "prompt 2, seed 7")
  assert.equal(columnOf("step_000250_p01_s7_mult-1.5.png").label, "prompt 1, seed 7, strength -1.5")
  assert.equal(columnOf("step_000250_p01_s7_ema.mp4").label, "prompt 1, seed 7, ema")
  assert.equal(columnOf("step_000250_p02_s7_ema.mp4", "a fox runs").label, "a fox runs, seed 7, ema")
  assert.equal(columnOf("loss.png"), null)
  const told = gridOf([
    { ...sample(0, "p01_s7.mp4"), prompt: 1, seed: 7, text: "a fox runs" },
    { ...sample(10, "p01_s7.mp4"), prompt: 1, seed: 7 },
  ])
  assert.deepEqual(told.columns.map((column) => column.label), ["a fox runs, seed 7"], "said once, true of all")
})

test("steps go down from 0, prompts across, and what was not drawn is a gap", () => {
  const grid = gridOf([sample(500, "p01_s7.mp4"), sample(0, "p10_s7.mp4"), sample(0, "p02_s7.mp4"), sample(0, "p01_s7.mp4")])
  assert.deepEqual(grid.columns.map((column) => column.label), ["prompt 1, seed 7", "prompt 2, seed 7", "prompt 10, seed 7"])
  assert.deepEqual(grid.rows.map((row) => row.step), [0, 500])
  assert.deepEqual(grid.rows[1].cells.map(Boolean), [true, false, false])
  assert.deepEqual(gridOf([{ step: 1, file: null }]), { columns: [], rows: [] })
})

test("arrows lead over gaps and end at the edge", () => {
  const grid = gridOf([sample(0, "p01_s7.mp4"), sample(0, "p02_s7.mp4"), sample(10, "p02_s7.mp4"), sample(20, "p01_s7.mp4")])
  assert.deepEqual(neighbour(grid, [0, 0], "ArrowDown"), [2, 0])
  assert.deepEqual(neighbour(grid, [0, 0], "ArrowRight"), [0, 1])
  assert.equal(neighbour(grid, [0, 0], "ArrowUp"), null)
  assert.equal(neighbour(grid, [0, 0], "Tab"), null)
})

test("marks stand at their steps and say what they are", () => {
  const marks = { save: [0, 50, 900], sample: [50], resume: [25] }
  const places = placed(marks, { first: 0, last: 100 }, 208, 4)
  assert.deepEqual(places.map((place) => [place.kind, place.x]), [["save", 4], ["save", 104], ["sample", 104], ["resume", 54]])
  assert.equal(told(places, 106, 4), "step 50: saved, samples")
  assert.equal(told(places, 150, 4), "")
  assert.deepEqual(placed(undefined, { first: 0, last: 1 }, 100, 4), [])
})

test("a run is told by how far it is", () => {
  assert.equal(standing({ status: "running", step: 120, total: 2000 }), "running, 120 of 2000")
  assert.equal(standing({ status: "finished", step: 2000, total: 2000 }), "finished, 2000")
  assert.equal(standing({ status: "unreadable", step: 0, total: null }), "unreadable, 0")
})
