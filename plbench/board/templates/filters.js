// ---- filters
const form = document.getElementById('filters');
const boards = all('.board');
const names = ['board', 'q', 'dataset', 'regime', 'backbone', 'tier'];
let filtered = '';
function filter() {
  const want = Object.fromEntries(names.map((name) => [name, state.get(name) ?? '']));
  if (!boards.some((board) => board.dataset.slug === want.board)) want.board = ''; // a link to what is no more
  if (JSON.stringify(want) === filtered) return;
  filtered = JSON.stringify(want);
  for (const field of form.elements) if (field.name && field.value !== want[field.name]) field.value = want[field.name];
  for (const link of all('#boards li a')) link.ariaCurrent = link.hash === '#board=' + want.board ? 'true' : null;
  document.getElementById('all-boards').hidden = !want.board;
  const needles = want.q.toLowerCase().split(/\s+/).filter(Boolean);
  const same = (wanted, value) => !wanted || wanted === value;
  const narrow = needles.length || want.regime || want.backbone || want.tier;
  let [shown, total] = [0, 0];
  for (const board of boards) {
    const open = same(want.board, board.dataset.slug) && same(want.dataset, board.dataset.dataset);
    let inBoard = 0;
    for (const entry of [...tables.values()].filter(({ table }) => table.matches('.rows') && board.contains(table))) {
      const { regime = '', backbone } = entry.block.dataset;
      let inTable = 0;
      for (const each of entry.bodies.flatMap((body) => body.rows)) {
        const { tier, backbone: own } = each.row.dataset;
        if (needles.length) each.text ??= one('th', each.row).textContent.toLowerCase();
        each.fits = open && same(want.tier, tier) && same(want.regime, regime) && same(want.backbone, own ?? backbone) &&
          needles.every((needle) => each.text.includes(needle));
        total += 1;
        inTable += each.fits;
      }
      entry.limit = FEW;
      entry.block.hidden = !inTable;
      if (inTable) show(entry);
      inBoard += inTable;
    }
    board.hidden = !open || (narrow && !inBoard);
    shown += inBoard;
  }
  document.getElementById('count').textContent = shown === total ? `${number(total)} rows` : `${number(shown)} of ${number(total)} rows`;
}
let typing;
form.addEventListener('input', () => {
  clearTimeout(typing);
  typing = setTimeout(() => change(Object.fromEntries(new FormData(form))), 60);
});
form.addEventListener('submit', (event) => event.preventDefault());
form.addEventListener('reset', (event) => {
  event.preventDefault();
  change(Object.fromEntries(names.map((name) => [name, ''])));
});
document.getElementById('boards').addEventListener('click', (event) => {
  const link = event.target.closest('li a, #all-boards');
  if (!link) return;
  event.preventDefault();
  change({ board: link.id ? '' : link.hash.slice('#board='.length), a: '', b: '', row: '' });
  const target = link.id ? form : document.getElementById(link.hash.slice(1));
  target.scrollIntoView();
});
