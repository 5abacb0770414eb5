// Run by `node --test tests/web`: the numbers of a recipe in the nodes that it goes into.

import assert from "node:assert/strict"
import { test } from "node:test"
import { chain, governed, showNumbers, widgetsBySetting } from "../../web/js/recipes.mjs"

const number = (setting) => ["INT", { setting }]
const CHOICES = [
  { key: "voice", inputs: { required: { steps: number("train.steps"), rate: number("train.learning_rate") } } },
  { key: "style", inputs: { required: { steps: number("train.steps") } } },
]
const OPTIMIZERS = [
  { key: "prodigy", inputs: {} },
  { key: "by class", inputs: { required: { class_name: ["STRING", { setting: "optimizer.name" }] } } },
]
const TOLD = {
  Recipe: { required: { recipe: ["COMBO", { options: CHOICES }] } },
  Train: { required: { steps: number("train.steps") }, optional: { rank: number("lora.rank") } },
  Memory: { required: {} },
  Optimizer: { required: { optimizer: ["COMBO", { setting: "optimizer.name", options: OPTIMIZERS }] } },
  Choosing: { optional: { optimizer: ["COMBO", { setting: "optimizer.name" }] } },
}

function made(type, values, behind = null, outputs = [{ name: "options" }]) {
  const node = new (class {
    static nodeData = { input: TOLD[type] }
  })()
  const widgets = Object.entries(values).map(([name, value]) => ({ name, value }))
  return Object.assign(node, {
    type,
    mode: 0,
    widgets,
    outputs,
    inputs: [{ name: "options", link: behind ? 1 : null }],
    getInputNode: () => behind,
  })
}

const isRecipe = (node) => node.type === "Recipe"
const show = (train, nodes) => showNumbers(train, governed(nodes, isRecipe).get(train), () => {})
const values = (node) => node.widgets.map((widget) => [widget.name, widget.value, Boolean(widget.disabled)])

test("a recipe's numbers stand in the node it goes into and cannot be changed there, until it goes", () => {
  const recipe = made("Recipe", { recipe: "voice", "recipe.steps": 1200, "recipe.rate": 2 })
  const train = made("Train", { steps: 500, rank: 32 }, made("Memory", {}, recipe), [])
  const nodes = [train, recipe]
  assert.equal(show(train, nodes), true)
  assert.equal(show(train, nodes), false, "nothing is left to do")
  assert.deepEqual(values(train), [["steps", 1200, true], ["rank", 32, false]])
  recipe.widgets[1].value = 900
  show(train, nodes)
  assert.deepEqual(values(train)[0], ["steps", 900, true])
  const saved = structuredClone(train.properties)
  const loaded = Object.assign(made("Train", { steps: 900, rank: 32 }, null, []), { properties: saved })
  show(loaded, [loaded])
  assert.deepEqual(values(loaded)[0], ["steps", 500, false], "its own, after a saved workflow was loaded")
  assert.deepEqual(loaded.properties, {})
})

test("what is muted gives nothing, what is bypassed lets others through", () => {
  const recipe = made("Recipe", { recipe: "style", "recipe.steps": 3000 })
  const between = made("Memory", {}, recipe)
  const train = made("Train", { steps: 500 }, between, [])
  between.mode = 4
  assert.deepEqual(chain(train), [recipe])
  between.mode = 2
  assert.deepEqual(chain(train), [])
  show(train, [train])
  assert.deepEqual(values(train), [["steps", 500, false]])
})

test("a number that comes over a wire is not known, and is left alone", () => {
  const recipe = made("Recipe", { recipe: "style", "recipe.steps": 3000 })
  recipe.inputs.push({ name: "recipe.steps", widget: { name: "recipe.steps" }, link: 7 })
  const train = made("Train", { steps: 500 }, recipe, [])
  show(train, [train])
  assert.deepEqual(values(train), [["steps", 500, false]])
  assert.deepEqual([...widgetsBySetting(recipe).keys()], ["train.steps"])
})

test("a choice is shown where it can be held, and a class that is none of the choices is not", () => {
  const said = made("Optimizer", { optimizer: "prodigy" })
  const train = made("Choosing", { optimizer: "auto" }, said, [])
  train.widgets[0].options = { values: ["auto", "prodigy"] }
  const by = []
  const shown = () =>
    showNumbers(train, governed([train], (node) => node === said).get(train), (widget, value, from) => by.push(from))
  shown()
  assert.deepEqual(values(train), [["optimizer", "prodigy", true]])
  assert.deepEqual(by, [said])
  said.widgets = Object.entries({ optimizer: "by class", "optimizer.class_name": "torch.optim.RAdam" }).map(
    ([name, value]) => ({ name, value })
  )
  shown()
  assert.deepEqual(values(train), [["optimizer", "auto", false]])
})
