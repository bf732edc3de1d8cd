// A list of contents by filter that grows page by page; the gallery and its neighbours use it.

import { signal, type Signal } from '@preact/signals';
import { api, type ContentFilter } from './api';
import { followIds } from './live';
import { keep, tellProblem } from './store';
import { isFinal } from './types';

const PAGE = 100;

export interface ContentList {
  ids: Signal<string[]>;
  isLoading: Signal<boolean>;
  isWhole: Signal<boolean>;
  hasFailed: Signal<boolean>;
  more: () => Promise<void>;
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
  return { ...list, more };
}
