// Numbers of a recipe, or of Optimizer Options, in the nodes that it goes into. There they stand in place of the node's own and cannot be changed,
// so that what is in view is what is used; when the recipe goes, the node's own come back. Knows nodes, not the page.

const OWN = "ltx2t_own" // property of a node: what its widgets held before a recipe came, by name
const SOCKET = "options"
const MUTED = 2
const BYPASSED = 4

// Path of a setting -> the widget of `node` that shows it, as the server's description of the node says.
export function widgetsBySetting(node) {
  const told = { ...node.constructor.nodeData?.input?.required, ...node.constructor.nodeData?.input?.optional }
  const found = new Map()
  for (const widget of node.widgets ?? []) {
    const path = settingOf(told, widget.name, node)
    if (path) found.set(path, widget)
  }
  return found
}

// "recipe.steps" is the number `steps` below the choice `recipe`.
function settingOf(told, name, node) {
  const [first, inner] = name.split(".")
  const more = told[first]?.[1]
  if (!inner) return more?.setting
  const chosen = node.widgets.find((widget) => widget.name === first)?.value
  const inputs = more?.options?.find?.((option) => option.key === chosen)?.inputs
  return { ...inputs?.required, ...inputs?.optional }[inner]?.[1]?.setting
}

// The node behind the socket `name` of `node`, in a subgraph too; null where there is none.
export function behind(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1
  let at = slot < 0 ? null : node.getInputNode(slot)
  let link = at?.isSubgraphNode?.() ? node.getInputLink(slot) : null
  while (at?.isSubgraphNode?.()) {
    const inside = at.resolveSubgraphOutputLink(link.origin_slot)
    at = inside?.outputNode
    link = inside?.link
  }
  return at ?? null
}

// The nodes behind the socket `options` of `node`, the nearest first; those that are bypassed give nothing of their own.
export function chain(node) {
  const found = []
  let at = node
  for (let far = 0; far < 100; far++) {
    at = behind(at, SOCKET)
    if (!at || at.mode === MUTED) break
    if (at.mode !== BYPASSED) found.push(at)
  }
  return found
}

// Node -> (path -> value, and which node says it) of what recipes say, of the nodes in `nodes` that a recipe reaches and of the others between.
export function governed(nodes, isRecipe) {
  const said = new Map()
  for (const node of nodes) {
    if (node.outputs?.some((output) => output.name === SOCKET)) continue // what it brings counts where it ends
    const options = chain(node)
    const numbers = new Map()
    for (const recipe of options.filter(isRecipe))
      for (const [path, widget] of widgetsBySetting(recipe)) if (!comesByWire(recipe, widget)) numbers.set(path, { value: widget.value, by: recipe })
    for (const one of [node, ...options.filter((other) => !isRecipe(other))])
      said.set(one, new Map([...(said.get(one) ?? []), ...numbers]))
  }
  return said
}

function comesByWire(node, widget) {
  return Boolean(node.inputs?.some((input) => input.widget?.name === widget.name && input.link != null))
}

// Whether the widget can hold the value: "torch.optim.RAdam" is none of the choices of Train LoRA.
function offers(widget, value) {
  const values = widget.options?.values
  return !Array.isArray(values) || values.includes(value)
}

// Show `numbers` in `node`, and what it held before in place of those that went. Whether anything was changed.
export function showNumbers(node, numbers, label) {
  const own = (node.properties ??= {})[OWN] ?? {}
  const before = JSON.stringify(own)
  let changed = false
  for (const [path, widget] of widgetsBySetting(node)) {
    const said = numbers?.get(path)
    const given = Boolean(said) && offers(widget, said.value) && !comesByWire(node, widget)
    if (given && !(widget.name in own)) own[widget.name] = widget.value
    if (!given && !(widget.name in own)) continue
    const value = given ? said.value : own[widget.name]
    if (!given) delete own[widget.name]
    changed ||= widget.value !== value || Boolean(widget.disabled) !== given
    if (widget.value !== value) widget.value = value
    widget.disabled = given
    label(widget, given ? value : null, said?.by)
  }
  if (Object.keys(own).length) node.properties[OWN] = own
  else delete node.properties[OWN]
  return changed || JSON.stringify(own) !== before
}
