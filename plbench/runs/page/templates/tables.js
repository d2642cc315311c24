// Tables: rows live in arrays, and only those in sight in the document, which keeps thousands of them fast

const FEW = 50;
const tables = new Map(); // by the table's key, which links name
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) grow(tables.get(target.dataset.key), 2 * FEW);
}, { rootMargin: '600px' });
function adopt(table) {
  const key = table.dataset.key;
  const block = table.closest('.scroll');
  const known = tables.get(key);
  const bodies = [...table.tBodies].map((body) => {
    const rows = [...body.rows].filter((row) => !row.matches('.heading')).map((row) => ({ row, fits: true, values: [] }));
    return { body, heading: one('.heading', body), rows, order: rows };
  });
  const entry = { table, block, bodies, sort: '', limit: FEW, rest: known?.rest };
  if (!known) {
    for (const head of all('th[data-key]', table.tHead)) {
      const button = make('button', { type: 'button' }, head.firstChild); // the title; a scale may follow it
      head.prepend(button);
      button.addEventListener('click', () => clickedHead(key, head));
    }
    entry.rest = make('p', { class: 'rest', 'data-key': key }, make('span'), make('button', { type: 'button' }, 'show all'));
    one('button', entry.rest).addEventListener('click', () => grow(tables.get(key), Infinity));
    block.append(entry.rest);
    near.observe(entry.rest);
  }
  for (const head of all('th[data-key]', table.tHead)) head.setAttribute('aria-sort', 'none');
  tables.set(key, entry);
  block.dataset.live = '';
  return entry;
}
function grow(entry, rows) {
  entry.limit += rows;
  show(entry);
}
function show({ bodies, limit, rest }) {
  let left = limit;
  let more = 0;
  for (const { body, heading, order } of bodies) {
    const fitting = order.filter((entry) => entry.fits).map((entry) => entry.row);
    const wanted = fitting.slice(0, left);
    more += fitting.length - wanted.length;
    left -= wanted.length;
    if (heading && wanted.length) wanted.unshift(heading);
    const there = body.children;
    if (there.length <= wanted.length && [...there].every((row, index) => row === wanted[index])) {
      body.append(...wanted.slice(there.length)); // what has the focus keeps it
    } else body.replaceChildren(...wanted);
  }
  rest.hidden = !more;
  rest.firstChild.textContent = `${number(more)} more rows `;
}
addEventListener('beforeprint', () => { for (const entry of tables.values()) show({ ...entry, limit: Infinity }); });
addEventListener('afterprint', () => tables.forEach(show));

// ---- sorting
function clickedHead(key, head) {
  const first = head.dataset.first;
  const second = first === 'ascending' ? 'descending' : 'ascending';
  const next = { none: first, [first]: second, [second]: '' }[head.getAttribute('aria-sort')];
  const others = state.getAll('sort').filter((entry) => !entry.startsWith(key + ':'));
  change({ sort: next ? [...others, `${key}:${head.dataset.key}:${next}`] : others });
}
const words = new Intl.Collator('en', { numeric: true });
function valueOf(cell, text) {
  const raw = cell.dataset.v ?? cell.textContent.trim();
  return text ? raw : Number.parseFloat(raw.replace('\u2212', '-').replace(/[,=<]/g, ''));
}
function sortTables() {
  for (const [key, entry] of tables) {
    const wanted = state.getAll('sort').findLast((each) => each.startsWith(key + ':')) ?? '';
    if (wanted === entry.sort) continue;
    entry.sort = wanted;
    const column = wanted.slice(key.length + 1, wanted.lastIndexOf(':')); // may hold colons itself
    const direction = wanted.slice(wanted.lastIndexOf(':') + 1);
    const heads = [...entry.table.tHead.rows[0].cells];
    const head = /^(a|de)scending$/.test(direction) && heads.find((each) => each.dataset.key === column);
    for (const each of heads) each.setAttribute('aria-sort', each === head ? direction : 'none');
    for (const body of entry.bodies) body.order = head ? sorted(body.rows, head, direction) : body.rows;
    show(entry);
  }
}
function sorted(rows, head, direction) {
  const index = head.cellIndex;
  const text = 'text' in head.dataset;
  for (const { row, values } of rows) values[index] ??= valueOf(row.cells[index], text);
  const sign = direction === 'ascending' ? 1 : -1;
  const missing = (value) => value === '' || Number.isNaN(value);
  return rows.slice().sort(({ values: { [index]: a } }, { values: { [index]: b } }) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b); // last in either direction
    return sign * (text ? words.compare(a, b) : a - b);
  });
}
