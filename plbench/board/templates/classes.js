// Two methods class by class: a picture, who wins how many, and a list that says the same

const percent = (value) => (value === null || value === undefined ? '–' : (value / 100).toFixed(2));
const signed = (value) => (value < 0 ? '\u2212' : '+') + Math.abs(value / 100).toFixed(2);
const view = document.getElementById('class-view').content.firstElementChild;
let compared = '';
function classView() {
  const board = boards.find((each) => each.dataset.slug === state.get('board'));
  const content = state.has('a') && board ? data(board.dataset.slug) : null;
  const id = content ? JSON.stringify([state.get('board'), state.get('a'), state.get('b')]) : '';
  if (id === compared) return;
  compared = id;
  if (!content) { view.remove(); return; }
  const rows = content.rows.filter((row) => row.ap.length);
  const a = rows.find((row) => row.id === state.get('a')) ?? rows[0];
  const b = rows.find((row) => row.id === state.get('b')) ?? rows.find((row) => row !== a);
  if (!a || !b) { view.remove(); return; }
  for (const [name, chosen] of [['a', a], ['b', b]]) {
    const select = one(`select[name=${name}]`, view);
    select.replaceChildren(...rows.map((row) => new Option(`${row.label} (${row.section})`, row.id, false, row === chosen)));
  }
  const pairs = content.classes.map(([name, positives, negatives, groups], index) => ({
    name, positives, negatives, groups, a: a.ap[index] ?? null, b: b.ap[index] ?? null,
  })).filter((pair) => pair.a !== null && pair.b !== null).map((pair) => ({ ...pair, gap: pair.a - pair.b }));
  const won = (chosen) => [chosen.filter((p) => p.gap > 0).length, chosen.filter((p) => p.gap < 0).length];
  const [first, second] = won(pairs);
  const omitted = content.classes.length - pairs.length;
  one('.summary', view).textContent = `${a.label} is ahead in ${first} classes, ${b.label} in ${second}` +
    (omitted ? `; ${omitted} classes lack an AP in one of the two and are left out.` : '.');
  const totals = [['all', pairs], ...content.groups.map((group) => [group, pairs.filter((p) => p.groups.includes(group))])];
  one('.totals tbody', view).replaceChildren(...totals.filter(([, chosen]) => chosen.length).map(([name, chosen]) => {
    const [x, y] = won(chosen);
    const mean = chosen.reduce((sum, p) => sum + p.gap, 0) / chosen.length;
    return line(name, chosen.length, x, y, chosen.length - x - y, signed(mean));
  }));
  const list = one('.list', view);
  const dots = drawScatter(one('.scatter', view), pairs, a.label, b.label);
  list.tBodies[0].replaceChildren(...pairs.map((pair, index) => {
    const row = line(pair.name, pair.groups.join(', '), number(pair.positives), number(pair.negatives),
      percent(pair.a), percent(pair.b), signed(pair.gap));
    row.cells[1].className = 'text';
    row.addEventListener('pointerenter', () => dots[index].classList.add('here'));
    row.addEventListener('pointerleave', () => dots[index].classList.remove('here'));
    return row;
  }));
  show(adopt(list));
  if (!state.getAll('sort').some((entry) => entry.startsWith('classes:'))) state.append('sort', 'classes:difference:descending');
  if (view.parentNode !== board) board.append(view);
}
function line(name, ...values) {
  return make('tr', {}, make('th', { scope: 'row' }, String(name)), ...values.map((value) => make('td', {}, String(value))));
}
function drawScatter(svg, pairs, first, second) {
  const shape = (name, attributes, text) => {
    const element = document.createElementNS('http://www.w3.org/2000/svg', name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const at = (value) => 44 + value * 0.0345; // hundredths of a percent to units of the view box
  const clip = (text) => (text.length > 44 ? text.slice(0, 43) + '…' : text);
  svg.replaceChildren(
    shape('rect', { class: 'frame', x: 44, y: 11, width: 345, height: 345 }),
    shape('path', { class: 'diagonal', d: 'M44 356L389 11' }),
    ...[0, 2500, 5000, 7500, 10000].flatMap((tick) => [
      shape('text', { x: at(tick), y: 371, 'text-anchor': 'middle' }, tick / 100),
      shape('text', { x: 38, y: 404 - at(tick), 'text-anchor': 'end' }, tick / 100),
    ]),
    shape('text', { x: 216, y: 391, 'text-anchor': 'middle' }, clip(first)),
    shape('text', { x: -184, y: 10, 'text-anchor': 'middle', transform: 'rotate(-90)' }, clip(second)),
  );
  const dots = pairs.map((pair) => {
    const kind = pair.gap > 0 ? 'first' : pair.gap < 0 ? 'second' : 'tied';
    const dot = shape('circle', { class: kind, cx: at(pair.a), cy: 400 - at(pair.b), r: 4 });
    dot.append(shape('title', {}, `${pair.name}: ${percent(pair.a)} and ${percent(pair.b)}`));
    return dot;
  });
  svg.append(...dots);
  return dots;
}
view.addEventListener('change', () => change(Object.fromEntries(new FormData(one('form', view)))));
one('.close', view).addEventListener('click', () => {
  const opener = one('[data-classes]', view.parentNode);
  change({ a: '', b: '', sort: state.getAll('sort').filter((entry) => !entry.startsWith('classes:')) });
  opener.focus();
});
function openClasses(slug, a, b) {
  const [x, y] = data(slug).rows.filter((row) => row.ap.length);
  change({ board: slug, a: a ?? x.id, b: b ?? y.id, row: '' });
  one('h3', view).focus();
  view.scrollIntoView();
}
