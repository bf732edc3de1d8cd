// A list of contents by filter that grows page by page; the gallery and its neighbours use it.

import { signal, type Signal } from '@preact/signals';
import { api, type ContentFilter } from '../server/api';
import { followIds } from '../server/live';
import { keep, tellProblem } from './store';
import { isFinal } from '../server/types';

const PAGE = 100;

export interface ContentList {
  ids: Signal<string[]>;
  isLoading: Signal<boolean>;
  isWhole: Signal<boolean>;
  hasFailed: Signal<boolean>;
  more: () => Promise<void>;
  /** Ask for the first page again: what is new comes to the front. */
  refresh: () => Promise<void>;
  drop: (ids: string[]) => void;
}

/** Nothing is read before the first `more()`. One page is read at a time. */
export function contentList(filter: ContentFilter): ContentList {
  const list = {
    ids: signal<string[]>([]),
    isLoading: signal(false),
    isWhole: signal(false),
    hasFailed: signal(false),
  };
  let cursor: string | null = null;
  async function more(): Promise<void> {
    if (list.isLoading.value || list.isWhole.value) return;
    list.isLoading.value = true;
    list.hasFailed.value = false;
    try {
      const page = await api.contents({ ...filter, limit: PAGE, cursor });
      for (const content of page.items) keep(content);
      followIds(page.items.filter((one) => !isFinal(one.status)).map((one) => one.id).reverse());
      const known = new Set(list.ids.value);
      const fresh = page.items.filter((one) => !known.has(one.id));
      list.ids.value = [...list.ids.value, ...fresh.map((one) => one.id)];
      cursor = page.next_cursor;
      list.isWhole.value = cursor === null;
    } catch (error) {
      list.hasFailed.value = true;
      tellProblem(error);
    } finally {
      list.isLoading.value = false;
    }
  }
  let isRefreshing = false;
  let isStale = false;
  async function refresh(): Promise<void> {
    isStale = isRefreshing;
    if (isRefreshing) return;
    isRefreshing = true;
    try {
      const page = await api.contents({ ...filter, limit: PAGE });
      for (const content of page.items) keep(content);
      followIds(page.items.filter((one) => !isFinal(one.status)).map((one) => one.id).reverse());
      const first = page.items.map((one) => one.id);
      // Behind the page's last one nothing has changed; before it, only what the page holds is left.
      const last = first.at(-1);
      const at = last === undefined ? -1 : list.ids.value.indexOf(last);
      const rest = page.next_cursor === null ? [] : list.ids.value.slice(at + 1);
      list.ids.value = [...first, ...rest.filter((id) => !first.includes(id))];
    } catch {
      // The banner tells of a lost line; the list stays as it was.
    } finally {
      isRefreshing = false;
      if (isStale) void refresh();
    }
  }
  function drop(ids: string[]): void {
    list.ids.value = list.ids.value.filter((id) => !ids.includes(id));
  }
  return { ...list, more, refresh, drop };
}
