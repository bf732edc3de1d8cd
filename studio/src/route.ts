// Where the reader is, kept in the address after '#': links work without the server knowing views.

import { signal } from '@preact/signals';

export interface Route {
  view: string;
  ids: string[];
}

function parse(): Route {
  const [view = '', ...ids] = location.hash.replace(/^#\/?/, '').split('/');
  return { view: view || 'create', ids: ids.filter((id) => /^[0-9a-zA-Z-]{1,64}$/.test(id)) };
}

export const route = signal<Route>(parse());

window.addEventListener('hashchange', () => {
  route.value = parse();
});

export function go(path: string): void {
  location.hash = `#/${path}`;
}
