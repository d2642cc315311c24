// Everything that follows from the state, and the start

function apply() {
  theme();
  filter();
  classView();
  sortTables();
  details();
}
function look() { // the browser finds no element for a fragment that says more than a board
  const board = state.get('board');
  if (board) (view.isConnected ? view : document.getElementById('board=' + board))?.scrollIntoView();
}

root.dataset.scripted = '';
for (const element of all('.scripted')) element.hidden = false;
all('table.rows').forEach(adopt);
apply();
look();
const unpacked = unpackIslands().then(() => { // until then there is no detail, and no class by class
  root.dataset.unpacked = '';
  apply();
  look();
});
addEventListener('hashchange', () => {
  if (location.hash && !location.hash.includes('=')) return; // an ordinary place on the page
  state = new URLSearchParams(location.hash.slice(1));
  apply();
  look();
});
