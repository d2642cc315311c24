// The state in the link, the boards' data, light and dark

// The whole state lives in the fragment (#board=…&q=…&sort=table:column:direction&a=…&b=…&row=board:id&theme=…): a link
// restores it, and nothing has to be stored, which pages opened from a file are often not allowed to.
const root = document.documentElement;
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const one = (selector, within = document) => within.querySelector(selector);
const make = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children); // strings become text, never markup
  return element;
};
const number = (value) => value.toLocaleString('en');
let state = new URLSearchParams(location.hash.includes('=') ? location.hash.slice(1) : '');

function change(values) {
  for (const [key, value] of Object.entries(values)) {
    state.delete(key);
    for (const each of [value].flat()) if (each) state.append(key, each);
  }
  try {
    history.replaceState(null, '', '#' + state);
  } catch { /* Safari allows a hundred in half a minute; the page works on without the link */ }
  apply();
}

// ---- data: one island for each board, unpacked at the start, parsed when it is first needed
const islands = new Map();
const unpack = (bytes) => new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'))).text();
async function unpackIslands() {
  for (const island of all('script[id^="data-"]')) {
    const text = await unpack(Uint8Array.from(atob(island.textContent), (sign) => sign.charCodeAt(0)));
    islands.set(island.id.slice('data-'.length), { text });
  }
}
function data(slug) {
  const island = islands.get(slug);
  if (island) island.value ??= JSON.parse(island.text);
  return island?.value;
}

// ---- light and dark
const toggle = document.getElementById('theme');
const system = matchMedia('(prefers-color-scheme: dark)');
function theme() {
  const chosen = state.get('theme');
  if (chosen === 'light' || chosen === 'dark') root.dataset.theme = chosen;
  else delete root.dataset.theme;
  const dark = (root.dataset.theme ?? (system.matches ? 'dark' : 'light')) === 'dark';
  toggle.textContent = dark ? 'Light' : 'Dark';
  toggle.setAttribute('aria-label', dark ? 'Switch to light colours' : 'Switch to dark colours');
  return dark;
}
toggle.addEventListener('click', () => {
  const next = theme() ? 'light' : 'dark';
  change({ theme: next === (system.matches ? 'dark' : 'light') ? '' : next });
});
system.addEventListener('change', theme);
