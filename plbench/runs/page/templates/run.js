// The page of a run: its tables sort, its colours switch, and what is folded but short is printed

function apply() {
  theme();
  sortTables();
}
root.dataset.scripted = '';
for (const element of all('.scripted')) element.hidden = false;
all('table.rows').map(adopt).forEach(show);
apply();
addEventListener('hashchange', () => {
  if (location.hash && !location.hash.includes('=')) return; // an ordinary place on the page
  state = new URLSearchParams(location.hash.slice(1));
  apply();
});
let folded = [];
addEventListener('beforeprint', () => {
  folded = all('details.printed:not([open])');
  for (const element of folded) element.open = true;
});
addEventListener('afterprint', () => { for (const element of folded) element.open = false; });
