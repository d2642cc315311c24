// What a row was made with, in a dialog

const dialog = document.getElementById('details');
function flat(value, path = '') {
  if (value === null || typeof value !== 'object') return [[path, String(value ?? '–')]];
  if (Array.isArray(value) && value.every((each) => each === null || typeof each !== 'object')) return [[path, value.join(', ') || '–']];
  return Object.entries(value).flatMap(([key, each]) => flat(each, path ? `${path}.${key}` : key));
}
function listed(title, pairs) {
  const terms = pairs.flatMap(([term, value]) => [make('dt', {}, term), make('dd', {}, value)]);
  return pairs.length ? [make('h3', {}, title), make('dl', {}, ...terms)] : [];
}
const linked = ([text, href]) => (href ? make('a', { href, rel: 'noopener noreferrer' }, text) : text || '–');
function details() {
  const [slug, id] = (state.get('row') ?? '').split(/:(.*)/s); // only a slug has no colon
  const content = slug ? data(slug) : null;
  const row = content?.rows.find((each) => each.id === id);
  if (!row) { if (dialog.open) dialog.close(); return; }
  if (dialog.open) return;
  const two = (value) => (typeof value === 'number' ? value.toFixed(2) : '–');
  const bounds = (figure) => `${two(figure.mean)}  [${two(figure.low)}, ${two(figure.high)}]`;
  document.getElementById('details-title').textContent = row.label;
  const compare = make('button', { type: 'button' }, 'Class by class, against the best row');
  compare.addEventListener('click', () => {
    const rows = content.rows.filter((each) => each.ap.length && each !== row);
    const best = rows.find((each) => each.section === row.section) ?? rows[0];
    dialog.close();
    openClasses(slug, row.id, best.id);
  });
  const comparable = row.ap.length && content.rows.filter((each) => each.ap.length).length > 1;
  document.getElementById('details-body').replaceChildren(
    make('p', { class: 'quiet' }, row.section),
    ...(comparable ? [make('p', {}, compare)] : []),
    ...listed('Record', [
      ['method', row.method], ['file', linked(row.file)], ['paper', linked(row.paper)], ['tier', row.tier],
      ['seeds', row.seeds.join(', ')], ['runs', row.keys.join(', ')], ['commit', row.commit ?? '–'],
    ]),
    ...listed('Figures in percent, with 95 % interval', Object.entries(row.figures).filter(([, f]) => f).map(([name, f]) => [name, bounds(f)])),
    ...listed('Parameters', flat(row.params ?? {})),
    ...listed('Cost of one run', flat(row.cost ?? {})),
    ...listed('Plan', flat(content.shared[row.plan] ?? {})),
    ...listed('Environment', flat(content.shared[row.environment] ?? {})),
  );
  dialog.showModal();
  dialog.scrollTop = 0;
  document.getElementById('details-title').focus();
}
dialog.addEventListener('close', () => { if (state.has('row')) change({ row: '' }); });
dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });
document.getElementById('main').addEventListener('click', async ({ target }) => {
  await unpacked;
  const slug = target.closest('.board')?.dataset.slug;
  if (target.matches('[data-classes]')) openClasses(slug);
  if (target.matches('.more')) change({ row: `${slug}:${data(slug).rows[target.closest('tr').dataset.row].id}` });
});
