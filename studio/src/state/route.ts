// Where the reader is, kept in the address after '#': links work without the server knowing views.

import { signal } from '@preact/signals';

export interface Route {
  view: string;
  ids: string[];
  /** What stands after `?`, such as a gallery's filter. */
  query: string;
}

function parse(): Route {
  const [path = '', query = ''] = location.hash.replace(/^#\/?/, '').split('?', 2);
  const [view = '', ...ids] = path.split('/');
  return {
    view: view || 'create',
    ids: ids.filter((id) => /^[0-9a-zA-Z_-]{1,64}$/.test(id)),
    query,
  };
}

export const route = signal<Route>(parse());

window.addEventListener('hashchange', () => {
  route.value = parse();
});

export function go(path: string): void {
  location.hash = `#/${path}`;
}

/** Change the address without a step in the history. */
export function replace(path: string): void {
  history.replaceState(null, '', `#/${path}`);
  route.value = parse();
}
